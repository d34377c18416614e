#include "launch/session/host_budget.h"

#include "kernels/make_cpu_backend.h"
#include "launch/session/run_plan.h"
#include "model_io/shard/shard_manifest.h"
#include "runtime/model/kv_cache.h"

namespace ptrt {
namespace {

class Needs {
 public:
  Needs(const ModelRunOptions& options, const ModelSource& model, const RunPlan& plan)
      : options_(options), model_(model), plan_(plan) {
    const Placement& placement = plan.placement;
    TrackShard shard;
    manifest_ = make_manifest(
        {model.config, placement.first_track, placement.tracks, plan.head_rows, plan.split()}, shard);
    EngineOptions engine;
    engine.max_batch = options.max_batch;
    engine.max_rows = options.max_step_rows();
    const std::int64_t rows = engine.max_rows, d = plan.rank_config.hidden_size;
    const std::int64_t logit_rows = work_limits(plan.rank_config, placement.tracks, engine).logit_rows;
    constexpr std::int64_t kFloat = sizeof(float);
    needs_.kv_page = kv_page_bytes(plan.rank_config, placement.tracks, plan.kv_dtype);
    needs_.scratch = activation_bytes(plan.rank_config, placement.tracks, rows, logit_rows, DType::float32,
                                      plan.split().ranks > 1);
    needs_.scratch += logit_rows * plan.rank_config.vocab_size * kFloat;
    needs_.scratch += placement.tracks * rows * d * kFloat;  // outputs of tracks, until they are added
  }

  // Every weight in the widest type: without a look into the file.
  HostNeeds at_most() const {
    HostNeeds most = needs_;
    for (const ShardEntry& entry : manifest_) most.weights += bytes(entry.mine.weight(DType::float32), {});
    return shared(most);
  }

  HostNeeds exactly() const {
    HostNeeds all = needs_;
    const CpuOptions kept{.compute = plan_.compute, .quantize_int8 = options_.int8_weights};
    const bool panels = model_.has_panels();
    for (const ShardEntry& entry : manifest_) {
      if (!model_.file) {
        all.weights += bytes(entry.mine.weight(DType::bfloat16), kept);
        continue;
      }
      const StoredTensor stored = model_.file->stat(entry.whole);
      const WeightSpec weight = entry.mine.weight(stored.dtype, stored.widened);
      const bool as_stored = cpu_weight_type(weight, kept) == stored.dtype && !entry.part;
      (as_stored && panels && can_map(entry.mine.role, stored) ? all.mapped : all.weights) +=
          bytes(weight, kept);
    }
    return shared(all);
  }

 private:
  // This rank's part of what it has together with others.
  HostNeeds shared(HostNeeds needs) const {
    needs.weights = (needs.weights + plan_.weights.ranks - 1) / plan_.weights.ranks;
    return needs;
  }
  static std::int64_t bytes(const WeightSpec& weight, const CpuOptions& kept) {
    return static_cast<std::int64_t>(cpu_weight_bytes(weight, kept));
  }

  // As a file of panels has its matrices, and its tables beside them.
  static bool can_map(WeightRole role, const StoredTensor& stored) {
    return is_multiplied(role) ? stored.layout == WeightLayout::panels : role != WeightRole::vector;
  }

  const ModelRunOptions& options_;
  const ModelSource& model_;
  const RunPlan& plan_;
  std::vector<ShardEntry> manifest_;
  HostNeeds needs_;
};

}  // namespace

HostPlan plan_kv_on_host(const MemoryLimit& limit, const ModelRunOptions& options, const ModelSource& model,
                         const RunPlan& plan) {
  const Needs needs(options, model, plan);
  const std::int64_t sequence_pages = pages_for(model.config.max_context);
  const HostNeeds most = needs.at_most();
  const bool ample = limit.bytes - limit.bytes / 4 >= most.weights + most.scratch + kHostReserveBytes;
  return plan_host_memory(ample ? most : needs.exactly(), limit, sequence_pages);
}

}  // namespace ptrt
