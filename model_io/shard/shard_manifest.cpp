#include "model_io/shard/shard_manifest.h"

#include <utility>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

class ManifestBuilder {
 public:
  ManifestBuilder(const ShardPlan& plan, TrackShard& shard)
      : plan_(plan), mine_(config_of_rank(plan.config, plan.split)), shard_(shard) {}

  // Each tensor is a group of its own.
  void add_shared() {
    for (const TensorSpec& spec : shared_tensors(plan_.config)) {
      if (shard_.head_rows.count > 0 && is_head(spec)) {
        add_head_rows(spec);
        if (spec.role != WeightRole::tied_embedding) {
          tensor_++;
          continue;
        }
        TensorSpec table = spec;
        table.role = WeightRole::embedding;  // the table is only looked up then
        add(spec, table, shared_slot(spec));
      } else {
        add(spec, spec, shared_slot(spec));
      }
      group_++;
    }
  }

  // The norms of a block are a group, and so are the tensors of a layer.
  void add_track(std::int64_t local) {
    const std::int64_t track = plan_.first_track + local;
    local_ = static_cast<std::size_t>(local);
    owner_ = static_cast<std::size_t>(track) + 1;
    tensor_ = 0;
    for (std::int64_t b = 0; b < plan_.config.blocks(); ++b) {
      const auto specs = block_tensors(plan_.config, track, b);
      add_group(specs, specs, shard_.blocks[static_cast<std::size_t>(b)]);
    }
    for (std::int64_t l = 0; l < plan_.config.layers; ++l)
      add_group(layer_tensors(plan_.config, track, l), layer_tensors(mine_, track, l),
                shard_.layers[static_cast<std::size_t>(l)]);
  }

  std::vector<ShardEntry> take() { return std::move(entries_); }

 private:
  void add(const TensorSpec& whole, const TensorSpec& mine, Weight& slot) {
    ShardEntry entry{
        .whole = whole, .mine = mine, .slot = &slot, .group = group_, .owner = owner_, .tensor = tensor_++};
    if (whole.shape != mine.shape) entry.part = part_of(whole, mine, plan_.split);
    entries_.push_back(std::move(entry));
  }

  // A tied head is the table's tensor again.
  void add_head_rows(const TensorSpec& spec) {
    TensorSpec rows = spec;
    rows.shape[0] = shard_.head_rows.count;
    entries_.push_back({.whole = spec,
                        .mine = rows,
                        .part = TensorPart{shard_.head_rows.first, shard_.head_rows.count, 0, spec.shape[1]},
                        .slot = &shard_.lm_head,
                        .group = group_++,
                        .owner = owner_,
                        .tensor = tensor_,
                        .again = spec.role == WeightRole::tied_embedding});
  }

  template <typename Slots>
  void add_group(const std::vector<TensorSpec>& whole, const std::vector<TensorSpec>& mine, Slots& slots) {
    for (std::size_t i = 0; i < whole.size(); ++i) {
      TrackWeights& all = weights_of(slots, whole[i].id);
      all.resize(static_cast<std::size_t>(plan_.tracks));
      add(whole[i], mine[i], all[local_]);
    }
    group_++;
  }

  Weight& shared_slot(const TensorSpec& spec) {
    if (spec.id == TensorId::embedding) return shard_.embedding;
    if (spec.id == TensorId::lm_head) return shard_.lm_head;
    PTRT_CHECK(spec.id == TensorId::final_norm);
    shard_.final_norm.resize(1);
    return shard_.final_norm[0];
  }

  const ShardPlan& plan_;
  ModelConfig mine_;
  TrackShard& shard_;
  std::vector<ShardEntry> entries_;
  std::size_t group_ = 0, owner_ = 0, tensor_ = 0, local_ = 0;
};

}  // namespace

std::vector<ShardEntry> make_manifest(const ShardPlan& plan, TrackShard& shard) {
  PTRT_CHECK(plan.first_track >= 0 && plan.tracks >= 1 &&
             plan.first_track + plan.tracks <= plan.config.tracks);
  shard.first_track = plan.first_track;
  shard.tracks = plan.tracks;
  shard.split = plan.split;
  shard.head_rows = plan.head;
  shard.layers.resize(static_cast<std::size_t>(plan.config.layers));
  shard.blocks.resize(static_cast<std::size_t>(plan.config.blocks()));
  ManifestBuilder manifest(plan, shard);
  manifest.add_shared();
  for (std::int64_t track = 0; track < plan.tracks; ++track) manifest.add_track(track);
  return manifest.take();
}

}  // namespace ptrt
