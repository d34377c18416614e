#include "launch/session/run_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/base/files.h"
#include "kernels/cuda/plugin.h"
#include "kernels/make_cpu_backend.h"
#include "launch/job/process.h"
#include "launch/session/agreement.h"
#include "launch/session/host_budget.h"

namespace ptrt {
namespace {

// Bytes of the head that a rank need not read each step: about as long as an exchange takes on one host.
constexpr std::int64_t kWorthSplitting = std::int64_t{4} << 20;
// On GPUs: about 15 us of reading, and so many elements of a row of the matrix (two bytes each, from memory) for each row's
// logit (four bytes, over NVLink) as these are slower. Counted, not measured: 4.4 TB/s and 0.45 TB/s.
constexpr std::int64_t kWorthSplittingOnGpus = std::int64_t{64} << 20, kLogitReads = 20;

Placement place(const JobComm& job, const ModelRunOptions& options, std::int64_t tracks) {
  const PlacementOptions placing{options.replicas, options.tensor_parallel};
  if (!options.emulated) return make_placement(job.size(), job.rank(), tracks, placing);
  if (job.size() > 1)
    throw_bad_input("--emulate-ranks: one process stands for all ranks, but this job has {}", job.size());
  const Placement placement = make_placement(options.emulated->ranks, 0, tracks, placing);
  if (placement.replicas > 1)
    throw_bad_input("--emulate-ranks {}: more than the {} ranks of one replica", placement.world_size,
                    placement.replica_ranks);
  return placement;
}

// Makes the plan step by step; each step may depend on those before it.
class Agreement {
 public:
  Agreement(JobComm& job, const ModelRunOptions& options, const ModelSource& model)
      : job_(job), options_(options), model_(model) {}

  AgreedRun run() {
    all_or_none(job_, [&] {
      plan_.placement = place(job_, options_, model_.config.tracks);
      plan_.rank_config = config_of_rank(model_.config, plan_.split());
      plan_.device = choose_device();
    });
    plan_.device = all_equal_or(job_, plan_.device, Device::cpu);
    bind_device();
    choose_types();
    if (!on_gpu()) choose_head_rows();
    plan_.cores = take_core_share(job_, options_.threads, options_.bind_threads);
    share_weights();
    all_or_none(job_, [&] { backend_ = make_backend(); });
    resolve_fusion();
    if (on_gpu()) choose_head_rows();  // by how they exchange
    compare_gpus();
    plan_kv_pages();
    return {std::move(plan_), std::move(backend_)};
  }

 private:
  bool on_gpu() const { return plan_.device == Device::cuda; }
  std::string cuda_obstacle() const;
  Device choose_device() const;
  void bind_device();
  void choose_types();
  Compute choose_compute() const;
  DType choose_activation_dtype() const;
  std::string weights_text() const;
  void share_weights();
  std::unique_ptr<Backend> make_backend() const;
  void resolve_fusion();
  void compare_gpus();
  void choose_head_rows();
  std::string head_obstacle() const;
  bool worth_splitting(const HeadRows& rows) const;
  DeviceNeeds needs_on_device();
  std::int64_t kv_budget();
  void plan_kv_pages();

  JobComm& job_;
  const ModelRunOptions& options_;
  const ModelSource& model_;
  RunPlan plan_;
  std::unique_ptr<Backend> backend_;
};

// Why this run cannot use a GPU; empty when it can.
std::string Agreement::cuda_obstacle() const {
  const ModelConfig& config = model_.config;
  if (options_.compute == Compute::float32 || options_.compute == Compute::int8)
    return fmt::format("products take bfloat16 or float16 there, not --compute {}",
                       to_string(*options_.compute));
  if (options_.int8_weights)
    return "it takes int8 weights as a file has them (ptrt quantize), not --weights int8";
  if (config.head_dim > kCudaMaxHeadDim || config.tracks > kCudaMaxTracks)
    return fmt::format("it takes up to {} tracks and a head_dim of up to {}, the model has {} and {}",
                       kCudaMaxTracks, kCudaMaxHeadDim, config.tracks, config.head_dim);
  if (plan_.placement.tensor_parallel > kCudaMaxTracks)
    return fmt::format("a track is shared by up to {} ranks there, not {}", kCudaMaxTracks,
                       plan_.placement.tensor_parallel);
  if (options_.kv_dtype == DType::float32)
    return "keys and values have 16 bits there, not --kv-dtype float32";
  return cuda_missing();
}

// `auto` takes a GPU where there is one and the options allow it.
Device Agreement::choose_device() const {
  if (options_.device == Device::cpu) return Device::cpu;
  const std::string obstacle = cuda_obstacle();
  if (obstacle.empty()) return Device::cuda;
  if (options_.device == Device::cuda) throw_bad_input("--backend cuda: {}", obstacle);
  return Device::cpu;
}

// Chooses the GPU of this rank. Where ranks would have to share one, `auto` falls back to the CPU.
void Agreement::bind_device() {
  if (!on_gpu()) return;
  HostGpus mine{job_.rank(), {}};
  all_or_none(job_, [&] { mine.uuids = cuda_devices(); });
  std::vector<HostGpus> ranks;
  for (const std::string& text : job_.all_gather_on_host(to_text(mine)))
    ranks.push_back(parse_host_gpus(text));
  std::string obstacle;
  try {
    plan_.gpu = choose_gpu(ranks, static_cast<std::size_t>(job_.host_rank()), options_.share_gpu);
  } catch (const Error& error) {
    obstacle = error.what();
  }
  all_or_none(job_, [&] {
    if (!obstacle.empty() && options_.device == Device::cuda) throw_bad_input("--backend cuda: {}", obstacle);
  });
  plan_.why_not_gpu = first_nonempty(job_, obstacle);
  if (!plan_.why_not_gpu.empty()) plan_.device = Device::cpu;
}

// Ranks that would choose differently all take float32, on GPUs bfloat16.
void Agreement::choose_types() {
  all_or_none(job_, [&] {
    plan_.compute = choose_compute();
    plan_.activation_dtype = choose_activation_dtype();
  });
  plan_.compute = all_equal_or(job_, plan_.compute, Compute::float32);
  plan_.activation_dtype = all_equal_or(job_, plan_.activation_dtype, DType::bfloat16);
  const DType matching = plan_.compute == Compute::float32 ? DType::float32 : DType::bfloat16;
  plan_.kv_dtype = on_gpu() ? plan_.activation_dtype : options_.kv_dtype.value_or(matching);
}

// What `auto` means for this rank's weights on the instruction set that was agreed on. Matrices of several
// types take float32: none of them is rounded without being asked for.
Compute Agreement::choose_compute() const {
  if (options_.compute) return *options_.compute;
  const std::optional<DType> type =
      options_.int8_weights ? DType::int8 : model_.cpu_matrix_type(plan_.placement);
  if (type == DType::int8 && cpu_computes(Compute::int8)) return Compute::int8;
  if (type == DType::bfloat16 && cpu_computes(Compute::bfloat16)) return Compute::bfloat16;
  return Compute::float32;
}

// On a GPU all types are one: an option that asks for bfloat16 makes all of them bfloat16.
DType Agreement::choose_activation_dtype() const {
  if (options_.compute == Compute::bfloat16 || options_.kv_dtype == DType::bfloat16) return DType::bfloat16;
  return activation_dtype_on_device(
      model_.stored_type(plan_.placement, {WeightRole::matrix, WeightRole::tied_embedding}));
}

// Why the ranks of this run cannot split the head; empty when they can.
std::string Agreement::head_obstacle() const {
  if (!on_gpu()) return "";
  if (plan_.placement.tensor_parallel > 1) return "on GPUs not with --tensor-parallel";
  return plan_.fusion == DeviceFusion::staged ? "these GPUs exchange through the hosts, which have no logits"
                                              : "";
}

// A split head saves each rank most of the matrix a step and costs it one more exchange, on GPUs of all logits.
bool Agreement::worth_splitting(const HeadRows& rows) const {
  const std::int64_t hidden = model_.config.hidden_size;
  const std::int64_t saved = (model_.config.vocab_size - rows.count) * hidden * 2;  // about two bytes each
  if (!on_gpu()) return saved >= kWorthSplitting;
  return saved >= kWorthSplittingOnGpus && options_.max_batch * kLogitReads <= hidden;
}

void Agreement::choose_head_rows() {
  const HeadRows rows =
      head_rows_of(model_.config.vocab_size, plan_.placement.replica_ranks, plan_.placement.replica_rank);
  const std::string obstacle = rows.count == 0 ? "" : head_obstacle();
  all_or_none(job_, [&] {
    if (options_.vocab_head == VocabHeadMode::split && !obstacle.empty())
      throw_bad_input("--vocab-head split: {}", obstacle);
  });
  if (rows.count == 0 || !obstacle.empty() || options_.vocab_head == VocabHeadMode::whole) return;
  if (options_.vocab_head == VocabHeadMode::split || worth_splitting(rows)) plan_.head_rows = rows;
}

std::unique_ptr<Backend> Agreement::make_backend() const {
  if (on_gpu())
    return make_cuda_backend({.device = plan_.gpu.device,
                              .graphs = options_.cuda_graphs,
                              .activation_dtype = plan_.activation_dtype});
  return make_cpu_backend({.threads = plan_.cores.threads,
                           .worker_cores = plan_.cores.worker_cores(),
                           .oversubscribed = plan_.cores.oversubscribed,
                           .compute = plan_.compute,
                           .quantize_int8 = options_.int8_weights,
                           .weights = plan_.weight_memory});
}

// What tells this rank's weights, and the memory near its cores, from those of other ranks of the host.
std::string Agreement::weights_text() const {
  const Placement& p = plan_.placement;
  CpuSet units;
  for (const CpuSet& core : plan_.cores.cores) units.insert(units.end(), core.begin(), core.end());
  return fmt::format("tracks {} + {}, part {}, head {} + {}, file {}, memory {}", p.first_track, p.tracks,
                     p.tensor_rank, plan_.head_rows.first, plan_.head_rows.count,
                     file_identity(options_.model), fmt::join(memory_nodes(units), ","));
}

// Replicas on one host have the same weights.
void Agreement::share_weights() {
  const bool can = plan_.placement.replicas > 1 && !on_gpu() && model_.file.has_value();
  if (!can || options_.share_weights == false) return;
  plan_.shares_weights = true;
  std::string text, slow;
  all_or_none(job_, [&] {
    if (options_.share_weights == true || shared_memory_has_huge_pages(slow)) text = weights_text();
  });
  plan_.weights = agree_on_weight_group(job_, text);
  if (!slow.empty()) plan_.weights.why_not = slow;
  all_or_none(job_, [&] {
    if (options_.share_weights == true && !plan_.weights.why_not.empty())
      throw_bad_input("--share-weights on: {}", plan_.weights.why_not);
  });
  if (plan_.weights.ranks == 1) return;
  plan_.weight_memory = std::make_shared<WeightMemory>();
  if (plan_.weights.leads) plan_.weight_memory->offer();
}

// NCCL cannot have two ranks on one GPU.
void Agreement::resolve_fusion() {
  const DeviceFusion asked = options_.fusion;
  std::string obstacle;
  if (on_gpu() && plan_.placement.replica_ranks > 1 && !options_.emulated) {
    if (plan_.gpu.sharers > 1) obstacle = fmt::format("{} ranks share a GPU", plan_.gpu.sharers);
    if (obstacle.empty()) obstacle = backend_->device_groups()->missing();
  }
  all_or_none(job_, [&] {
    if (!on_gpu() && asked != DeviceFusion::automatic)
      throw_bad_input("--fusion {} is for ranks on GPUs, this run is on the CPU", to_string(asked));
    if (!obstacle.empty() && (asked == DeviceFusion::tree || asked == DeviceFusion::nccl))
      throw_bad_input("--fusion {}: {}", to_string(asked), obstacle);
  });
  plan_.fusion = first_nonempty(job_, obstacle).empty() ? asked : DeviceFusion::staged;
}

// Every rank of a replica chooses tokens from logits of its own: with another GPU, or library of products, their bits
// differ, and ranks that choose different tokens would stop in the middle. Other versions of NCCL do not meet.
void Agreement::compare_gpus() {
  if (!on_gpu() || plan_.placement.replica_ranks == 1 || options_.emulated) return;
  const CudaVersions versions = cuda_versions();
  Facts facts = {{"GPU", backend_->instruction_set()}, {"cuBLASLt", fmt::format("{}", versions.cublaslt)}};
  if (plan_.fusion != DeviceFusion::staged) facts["NCCL"] = fmt::format("{}", versions.nccl);
  agree_in_replica(job_, plan_.placement.replica, "their GPUs", facts);
}

DeviceNeeds Agreement::needs_on_device() {
  DeviceTypes types{.activations = plan_.activation_dtype};  // of random weights
  model_.for_each_weight(plan_.placement, [&](const TensorSpec& spec, const StoredTensor& stored) {
    types.note(spec, stored.dtype);
    if (spec.role == WeightRole::matrix || spec.role == WeightRole::tied_embedding)
      plan_.matrix_types.insert(types.of_matrix(spec));
  });
  return device_needs(plan_.rank_config, plan_.placement, types, options_.max_batch, options_.max_step_rows(),
                      {plan_.fusion, options_.emulated.has_value(), plan_.head_rows});
}

// Bytes that the KV cache may take: what was asked for, else a part of this rank's share of the host
// (plan_host_memory), or what a device has left. Plans the device's memory.
std::int64_t Agreement::kv_budget() {
  if (const auto free = backend_->free_bytes()) {
    plan_.device_memory =
        plan_device_memory(needs_on_device(), static_cast<std::int64_t>(*free) / plan_.gpu.sharers,
                           options_.gpu_memory_fraction, options_.kv_cache_bytes);
    return plan_.device_memory->kv;
  }
  if (options_.kv_cache_bytes) return *options_.kv_cache_bytes;
  const HostPlan host = plan_kv_on_host(memory_limit_of_rank(job_.host_ranks()), options_, model_, plan_);
  plan_.kv_limit = host.limited_by;
  return host.kv;
}

// As many pages as the batch can use, within kv_budget(). Every rank takes the smallest number of all ranks,
// so that all of them schedule alike.
void Agreement::plan_kv_pages() {
  std::int64_t pages = 0;
  all_or_none(job_, [&] {
    const std::int64_t page_bytes = kv_page_bytes(plan_.rank_config, plan_.placement.tracks, plan_.kv_dtype);
    const std::int64_t useful = options_.max_batch * pages_for(model_.config.max_context);
    const std::int64_t budget = kv_budget();
    pages = std::min(useful, budget / page_bytes);
    if (pages == useful) plan_.kv_limit.clear();
    if (pages < 1)
      throw_bad_input("--kv-cache-bytes {}: a page of {} tokens takes {} bytes on this rank", budget,
                      kPageTokens, page_bytes);
  });
  plan_.kv_pages = all_min(job_, pages);
}

}  // namespace

AgreedRun agree_on_run(JobComm& job, const ModelRunOptions& options, const ModelSource& model) {
  return Agreement(job, options, model).run();
}

}  // namespace ptrt
