#include "runtime/serving/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "kernels/base/error.h"
#include "kernels/cuda/host/scratch_size.h"
#include "kernels/cuda/host/weight_layout.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/vocab_head.h"

namespace ptrt {
namespace {

std::int64_t size(DType dtype) {
  return static_cast<std::int64_t>(size_of(dtype));
}

std::int64_t weight_bytes(const TensorSpec& spec, const DeviceTypes& types) {
  const DType stored = spec.role == WeightRole::embedding ? types.embedding : types.of_matrix(spec);
  const WeightSpec weight = spec.weight(stored);
  const DType kept = cuda::kept_on_device(spec.role, stored, types.activations).value();
  return cuda::device_weight_bytes(kept, weight.count, weight.out, weight.in).taken();
}

// Of the fusion, and of the ranks that share tracks, as Engine makes them.
std::int64_t sum_bytes(const ModelConfig& rank_config, const Placement& placement, std::int64_t max_rows,
                       const DeviceSums& sums) {
  const std::int64_t values = max_rows * rank_config.hidden_size;
  const auto of_group = [&](std::int64_t ranks, std::int64_t parts, std::int64_t most) {
    const bool nccl = ranks > 1 && sums.fusion != DeviceFusion::staged && !sums.emulated;
    return device_sum_bytes(sums.fusion, ranks, parts, most) + (nccl ? kNcclBytes : 0);
  };
  return of_group(placement.fusion_ranks(), Fusion::parts_of_rank(placement), values) +
         of_group(placement.tensor_parallel, 1, placement.tracks * values);
}

// What a rank does not have of the shared tensors where the head is split; less than nothing where the head is the token
// table too, which every rank keeps to look tokens up.
std::int64_t not_of_head(const ModelConfig& rank_config, const DeviceTypes& types, const HeadRows& rows) {
  if (rows.count == 0) return 0;
  std::int64_t bytes = 0;
  for (TensorSpec spec : shared_tensors(rank_config)) {
    if (!is_head(spec)) continue;
    bytes += weight_bytes(spec, types);
    if (TensorSpec table = spec; spec.role == WeightRole::tied_embedding) {
      table.role = WeightRole::embedding;
      bytes -= weight_bytes(table, types);
    }
    spec.shape[0] = rows.count;
    bytes -= weight_bytes(spec, types);
  }
  return bytes;
}

std::string describe_sums(const DevicePlan& plan) {
  return plan.sums == 0 ? "" : fmt::format(", sums between ranks {}", with_byte_unit(plan.sums));
}

}  // namespace

std::int64_t activation_bytes(const ModelConfig& rank_config, std::int64_t tracks, std::int64_t max_rows,
                              std::int64_t logit_rows, DType activation_dtype, bool split_track) {
  const std::int64_t fp32 = sizeof(float), act = size(activation_dtype), d = rank_config.hidden_size;
  const auto uses = [&](FfnKind kind) { return std::ranges::count(rank_config.ffn_pattern, kind) > 0; };
  std::int64_t ffn = uses(FfnKind::dense) ? rank_config.ffn_size : 0;
  std::int64_t row = d * fp32 + d * act + d * (split_track ? fp32 : act);              // h, normed, out
  row += 2 * (rank_config.heads + rank_config.kv_heads) * rank_config.head_dim * act;  // q, k, v, attn_out
  if (uses(FfnKind::moe)) {
    const MoeConfig& moe = *rank_config.moe;
    ffn = std::max(ffn, moe.top_k * moe.ffn_size);
    row += moe.experts * fp32 + moe.top_k * d * act;
  }
  row += 2 * ffn * act;
  const std::int64_t angles = rank_config.head_dim * (rank_config.has_local_rope_theta() ? 2 : 1);
  const std::int64_t shared_row = (d + angles) * fp32;  // x, rope angles
  const std::int64_t head_row = d * fp32 + (activation_dtype == DType::float32 ? 0 : d * act);
  return max_rows * (tracks * row + shared_row) + logit_rows * head_row;
}

DType activation_dtype_on_device(std::optional<DType> stored) {
  return stored == DType::float16 ? DType::float16 : DType::bfloat16;
}

void DeviceTypes::note(const TensorSpec& spec, DType stored) {
  if (spec.id == TensorId::embedding) embedding = stored;
  if (spec.role == WeightRole::matrix && cuda::is_8bit(stored)) narrow[spec.path] = stored;
}

DType DeviceTypes::of_matrix(const TensorSpec& spec) const {
  const auto found = narrow.find(spec.path);
  return found == narrow.end() ? activations : found->second;
}

DeviceNeeds device_needs(const ModelConfig& rank_config, const Placement& placement, const DeviceTypes& types,
                         std::int64_t max_batch, std::int64_t max_rows, const DeviceSums& sums) {
  DeviceNeeds needs;
  const std::int64_t tracks = placement.tracks;
  for (const TensorSpec& spec : shared_tensors(rank_config)) needs.weights += weight_bytes(spec, types);
  needs.weights -= not_of_head(rank_config, types, sums.head_rows);
  for (std::int64_t t = 0; t < tracks; t++)
    for (const TensorSpec& spec : track_tensors(rank_config, placement.first_track + t))
      needs.weights += weight_bytes(spec, types);

  EngineOptions options;
  options.max_batch = max_batch;
  options.max_rows = max_rows;
  const WorkLimits limits = work_limits(rank_config, tracks, options);
  needs.scratch = activation_bytes(rank_config, tracks, max_rows, limits.logit_rows, types.activations,
                                   placement.tensor_parallel > 1);
  needs.scratch += limits.logit_rows * rank_config.vocab_size * static_cast<std::int64_t>(sizeof(float));
  needs.scratch += static_cast<std::int64_t>(cuda_scratch_bytes(limits));
  if (!types.narrow.empty()) needs.scratch += cuda::kWidenedBytes;
  needs.kv_page = kv_page_bytes(rank_config, tracks, types.activations);
  needs.sums = sum_bytes(rank_config, placement, max_rows, sums);
  if (sums.head_rows.count > 0)  // the logits that a rank sends, and those it receives
    needs.sums += (1 + placement.replica_ranks) * limits.logit_rows * size(DType::float32) *
                  head_rows_of(rank_config.vocab_size, placement.replica_ranks, 0).count;
  return needs;
}

DevicePlan plan_device_memory(const DeviceNeeds& needs, std::int64_t free, double fraction,
                              std::optional<std::int64_t> kv_asked) {
  DevicePlan plan{free, needs.weights, needs.scratch, needs.sums, kDeviceReserveBytes, 0};
  const std::int64_t fixed = plan.weights + plan.scratch + plan.sums + plan.reserve;
  if (plan.weights > free)
    throw_bad_input("the weights of this rank take {}, the device has {} free", with_byte_unit(plan.weights),
                    with_byte_unit(free));
  if (kv_asked) {
    if (fixed + *kv_asked > free)
      throw_bad_input(
          "--kv-cache-bytes {}: the device has {} free; weights take {}, scratch {}{}, {} stay free",
          *kv_asked, with_byte_unit(free), with_byte_unit(plan.weights), with_byte_unit(plan.scratch),
          describe_sums(plan), with_byte_unit(plan.reserve));
    plan.kv = *kv_asked;
    return plan;
  }
  plan.kv = static_cast<std::int64_t>(fraction * static_cast<double>(free)) - fixed;
  if (plan.kv < needs.kv_page)
    throw_bad_input(
        "no room for a KV page of {}: of the {} that the device has free, --gpu-memory-fraction {} may be "
        "used; weights take {}, scratch {} (less with a smaller --max-batch or --max-step-tokens){}, {} stay "
        "free",
        with_byte_unit(needs.kv_page), with_byte_unit(free), fraction, with_byte_unit(plan.weights),
        with_byte_unit(plan.scratch), describe_sums(plan), with_byte_unit(plan.reserve));
  return plan;
}

std::string DevicePlan::describe() const {
  return fmt::format("device memory: {} free at start, weights {}, scratch {}{}, reserve {}, KV up to {}",
                     with_byte_unit(free), with_byte_unit(weights), with_byte_unit(scratch),
                     describe_sums(*this), with_byte_unit(reserve), with_byte_unit(kv));
}

HostPlan plan_host_memory(const HostNeeds& needs, const MemoryLimit& limit, std::int64_t sequence_pages) {
  const std::int64_t weights = needs.weights + (limit.counts_mapped_files ? needs.mapped : 0);
  const std::int64_t quarter = limit.bytes / 4;
  const std::int64_t left = limit.bytes - weights - needs.scratch - kHostReserveBytes;
  const bool physical = limit.source.empty();
  if (quarter <= left) return {quarter, limit.source};
  // A limit ends the process; beyond physical memory it only slows down, as far as there is swap.
  const std::int64_t lacking =
      physical ? weights + needs.scratch - limit.bytes - limit.swap_bytes : needs.kv_page - left;
  if (lacking > 0)
    throw_bad_input(
        "not enough memory: {} leaves this rank {}; its weights take {}, scratch {} (--kv-cache-bytes skips "
        "this check)",
        physical ? "the host" : limit.source, with_byte_unit(limit.bytes + limit.swap_bytes),
        with_byte_unit(weights), with_byte_unit(needs.scratch));
  if (physical) {
    const std::int64_t least = std::min(quarter, sequence_pages * needs.kv_page);
    return {std::max(left, least), "what the weights leave of the host's memory"};
  }
  return {left, limit.source};
}

std::string with_byte_unit(std::int64_t bytes) {
  constexpr std::array<const char*, 5> kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return fmt::format("{:.{}f} {}", value, unit == 0 ? 0 : 1, kUnits[unit]);
}

}  // namespace ptrt
