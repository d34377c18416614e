// Mixture of experts: which experts each row takes, and the rows of each expert.
#pragma once

#include "kernels/cuda/base/dtypes.cuh"
#include "kernels/cuda/base/per_track.h"
#include "kernels/cuda/base/reduce.cuh"
#include "kernels/cuda/matmul/moe.h"

namespace ptrt::cuda {

inline constexpr int kRouteWarps = 4, kGroupWarps = 8;

template <typename T>
struct RouteArgs {
  PerTrack<float> router;  // [experts, in]
  const T* x;
  std::int64_t x_stride;
  float* logits;  // [tracks, rows, experts]
  std::int64_t logits_stride;
  ExpertChoice* choices;  // [tracks, rows · top_k]
  int rows, in, experts, top_k;
  float cap;
  bool normalize_top_k;
};

// The expert with the largest logit among those not in `taken`, ties to the lower index; by one
// warp.
__device__ __forceinline__ int argmax_expert(const float* logits, int experts, const ExpertChoice* taken,
                                             int taken_count) {
  float best = -INFINITY;
  int best_expert = experts;
  for (int e = lane_id(); e < experts; e += kWarpSize) {
    bool free = true;
    for (int i = 0; i < taken_count; ++i) free = free && taken[i].expert != e;
    if (free && (best_expert == experts || logits[e] > best)) best = logits[e], best_expert = e;
  }
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, best, distance);
    const int other_expert = __shfl_xor_sync(kAllLanes, best_expert, distance);
    const bool none = best_expert == experts;
    const bool better = other > best || (!(best > other) && other_expert < best_expert);
    if (other_expert < experts && (none || better)) best = other, best_expert = other_expert;
  }
  return best_expert;
}

// One block per row and track: all warps compute the logits, the first chooses.
template <typename T>
__global__ void __launch_bounds__(kRouteWarps* kWarpSize) route_kernel(RouteArgs<T> args) {
  pdl_trigger_and_wait();
  const int row = static_cast<int>(blockIdx.x), track = static_cast<int>(blockIdx.y);
  const int lane = lane_id(), warp = warp_id();
  const T* x = args.x + track * args.x_stride + static_cast<std::int64_t>(row) * args.in;
  float* logits = args.logits + track * args.logits_stride + static_cast<std::int64_t>(row) * args.experts;
  for (int e = warp; e < args.experts; e += kRouteWarps) {
    const float* w = args.router.at[track] + static_cast<std::int64_t>(e) * args.in;
    float sum = 0;
    for (int i = lane; i < args.in; i += kWarpSize) sum += to_float(x[i]) * w[i];
    sum = warp_sum(sum);
    if (args.cap != 0) sum = 0.0f * sum + args.cap * tanhf(sum / args.cap);  // not finite stays that
    if (lane == 0) logits[e] = sum;
  }
  __syncthreads();
  if (warp != 0) return;

  ExpertChoice* choices = args.choices + (static_cast<std::int64_t>(track) * args.rows + row) * args.top_k;
  for (int i = 0; i < args.top_k; ++i) {
    const int expert = argmax_expert(logits, args.experts, choices, i);
    if (lane == 0) choices[i] = {expert, logits[expert]};
    __syncwarp();
  }
  float zeros = 0;  // NaN where a logit is not finite: then all weights are, whatever was chosen
  for (int e = lane; e < args.experts; e += kWarpSize) zeros += 0.0f * logits[e];
  zeros = warp_sum(zeros);
  const float max_logit = logits[choices[0].expert];
  float all = zeros;
  if (!args.normalize_top_k) {
    for (int e = lane; e < args.experts; e += kWarpSize) all += expf(logits[e] - max_logit);
    all = warp_sum(all);
  }
  if (lane != 0) return;
  float chosen = zeros;
  for (int i = 0; i < args.top_k; ++i) chosen += choices[i].weight = expf(choices[i].weight - max_logit);
  const float sum = args.normalize_top_k ? chosen : all;
  for (int i = 0; i < args.top_k; ++i) choices[i].weight /= sum;
}

struct GroupArgs {
  const ExpertChoice* choices;
  std::int32_t *grouped_slots, *expert_begin;
  int slots, experts;
};

// One warp per expert: counts the slots of lower experts, which is the offset of its own; then
// lists its own in ascending order. Warps are independent. Grid: x over experts, y over tracks.
inline __global__ void __launch_bounds__(kGroupWarps* kWarpSize) group_kernel(GroupArgs args) {
  pdl_trigger_and_wait();
  const int track = static_cast<int>(blockIdx.y), lane = lane_id();
  const int expert = static_cast<int>(blockIdx.x) * kGroupWarps + warp_id();
  if (expert >= args.experts) return;
  const ExpertChoice* choices = args.choices + static_cast<std::int64_t>(track) * args.slots;
  std::int32_t* grouped = args.grouped_slots + static_cast<std::int64_t>(track) * args.slots;
  std::int32_t* begin = args.expert_begin + track * (args.experts + 1);
  int offset = 0;
  for (int slot = lane; slot < args.slots; slot += kWarpSize) offset += choices[slot].expert < expert ? 1 : 0;
  offset = warp_sum(offset);
  if (lane == 0) begin[expert] = offset;
  if (lane == 0 && expert == 0) begin[args.experts] = args.slots;
  const unsigned lanes_before = (1u << lane) - 1;
  for (int first = 0; first < args.slots; first += kWarpSize) {
    const int slot = first + lane;
    const bool mine = slot < args.slots && choices[slot].expert == expert;
    const unsigned all = __ballot_sync(kAllLanes, mine ? 1 : 0);
    if (mine) grouped[offset + __popc(all & lanes_before)] = slot;
    offset += __popc(all);
  }
}

}  // namespace ptrt::cuda
