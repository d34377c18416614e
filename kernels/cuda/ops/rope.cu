#include <algorithm>

#include "kernels/cuda/base/per_track.h"
#include "kernels/cuda/base/reduce.cuh"
#include "kernels/cuda/ops/kv_page.cuh"
#include "kernels/cuda/ops/rope.h"

namespace ptrt::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHeadDim = 256;
constexpr std::int64_t kBlocksWanted = 512;          // a few on every multiprocessor
constexpr int kPairs = kMaxHeadDim / 2 / kWarpSize;  // per lane, of elements j and j + head_dim / 2

struct AnglesArgs {
  const std::int32_t* positions;
  float* cos_sin;
  int width;
  double magnitude, frequencies[kMaxHeadDim / 2];
};

__global__ void rope_angles_kernel(AnglesArgs args) {
  pdl_trigger_and_wait();
  const int half = args.width / 2;
  float* row = args.cos_sin + static_cast<std::int64_t>(blockIdx.x) * args.width;
  for (int j = thread_id(); j < half; j += block_size()) {
    const double angle = args.positions[blockIdx.x] * args.frequencies[j];
    row[j] = static_cast<float>(args.magnitude * cos(angle));
    row[half + j] = static_cast<float>(args.magnitude * sin(angle));
  }
}

template <typename T>
struct RopeAppendArgs {
  T* q;
  const T *k, *v;
  std::int64_t q_stride, k_stride;  // between tracks; v as k
  PerTrack<float> q_norm, k_norm;   // null pointers: no norm
  int first_track;                  // of the pool
  const float* cos_sin;             // [rows, head_dim]; null: no RoPE
  int heads, kv_heads, head_dim;
  float eps;
  StepView step;
  LayerPool<T> pool;
};

// A lane's elements of one head: the pairs that RoPE rotates and, for an odd head_dim in lane 0,
// the last element.
struct Head {
  float low[kPairs], high[kPairs], last;
};

template <typename T>
__device__ __forceinline__ Head load_head(const T* from, int head_dim) {
  const int lane = lane_id(), half = head_dim / 2;
  Head head{};
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int j = lane + i * kWarpSize;
    if (j < half) head.low[i] = to_float(from[j]), head.high[i] = to_float(from[j + half]);
  }
  if (head_dim % 2 != 0 && lane == 0) head.last = to_float(from[head_dim - 1]);
  return head;
}

template <typename T>
__device__ __forceinline__ void save_head(const Head& head, int head_dim, T* to) {
  const int lane = lane_id(), half = head_dim / 2;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int j = lane + i * kWarpSize;
    if (j < half) store(to + j, head.low[i]), store(to + j + half, head.high[i]);
  }
  if (head_dim % 2 != 0 && lane == 0) store(to + head_dim - 1, head.last);
}

__device__ __forceinline__ void norm_head(Head& head, const float* weights, int head_dim, float eps) {
  const int lane = lane_id(), half = head_dim / 2;
  float squares = head.last * head.last;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) squares += head.low[i] * head.low[i] + head.high[i] * head.high[i];
  const float scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(head_dim) + eps);
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int j = lane + i * kWarpSize;
    if (j >= half) continue;
    head.low[i] *= scale * weights[j];
    head.high[i] *= scale * weights[j + half];
  }
  if (head_dim % 2 != 0 && lane == 0) head.last *= scale * weights[head_dim - 1];
}

__device__ __forceinline__ void rotate_head(Head& head, const float* cos_sin, int head_dim) {
  const int lane = lane_id(), half = head_dim / 2;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int j = lane + i * kWarpSize;
    if (j >= half) continue;
    const float cosine = cos_sin[j], sine = cos_sin[half + j], a = head.low[i], b = head.high[i];
    head.low[i] = a * cosine - b * sine;
    head.high[i] = b * cosine + a * sine;
  }
}

// Grid: x over rows, y over tracks, z over shares of the heads. A warp processes whole heads: those
// of q, then k, then v.
template <typename T, bool kNormsAfterRope>
__global__ void __launch_bounds__(kWarps* kWarpSize) rope_append_kernel(RopeAppendArgs<T> args) {
  trigger_dependent_launch();
  const int row = static_cast<int>(blockIdx.x), track = static_cast<int>(blockIdx.y);
  const int head_dim = args.head_dim, kv_heads = args.kv_heads;
  const float* angles =
      args.cos_sin == nullptr ? nullptr : args.cos_sin + static_cast<std::int64_t>(row) * head_dim;
  T* q = args.q + track * args.q_stride + static_cast<std::int64_t>(row) * args.heads * head_dim;
  const std::int64_t kv_row = track * args.k_stride + static_cast<std::int64_t>(row) * kv_heads * head_dim;
  const int position = args.step.positions[row];
  const std::int64_t page = lookup_page(args.step, row, position);
  const int offset_in_page = position % kPageSize * head_dim;
  grid_dependency_wait();  // the step's inputs above are written by no kernel

  const int first_head = static_cast<int>(blockIdx.z) * kWarps + warp_id();
  for (int i = first_head; i < args.heads + 2 * kv_heads; i += static_cast<int>(gridDim.z) * kWarps) {
    const bool is_q = i < args.heads, is_v = i >= args.heads + kv_heads;
    const int head_index = is_q ? i : (i - args.heads) % kv_heads;
    const T* from = (is_q ? q : (is_v ? args.v : args.k) + kv_row) + head_index * head_dim;
    T* to = q + head_index * head_dim;
    if (!is_q) {
      to = args.pool.keys(page, args.first_track + track, head_index) + offset_in_page;
      if (is_v) to += args.pool.values_offset;
    }
    Head head = load_head(from, head_dim);
    if (!is_v) {
      const float* norm = is_q ? args.q_norm.at[track] : args.k_norm.at[track];
      if (!kNormsAfterRope && norm != nullptr) norm_head(head, norm, head_dim, args.eps);
      if (angles != nullptr) rotate_head(head, angles, head_dim);
      if (kNormsAfterRope && norm != nullptr) norm_head(head, norm, head_dim, args.eps);
    }
    save_head(head, head_dim, to);
  }
}

template <typename T>
void run(const AttentionShape& shape, const TrackWeights& q_norm, const TrackWeights& k_norm,
         const Tensor& cos_sin, const Tensor& q, const Tensor& k, const Tensor& v, const StepView& step,
         std::int64_t layer, const KvPool& pool, cudaStream_t stream) {
  for_track_groups(q.tracks, [&](std::int64_t first, std::int64_t count) {
    RopeAppendArgs<T> args{};
    args.q = q.row_as<T>(first, 0);
    args.k = k.row_as<T>(first, 0);
    args.v = v.row_as<T>(first, 0);
    args.q_stride = q.track_stride;
    args.k_stride = k.track_stride;
    if (!q_norm.empty()) args.q_norm = per_track<float>(q_norm, first, count);
    if (!k_norm.empty()) args.k_norm = per_track<float>(k_norm, first, count);
    args.first_track = static_cast<int>(first);
    args.cos_sin = shape.rope ? static_cast<const float*>(cos_sin.data) : nullptr;
    args.heads = static_cast<int>(shape.heads);
    args.kv_heads = static_cast<int>(shape.kv_heads);
    args.head_dim = static_cast<int>(shape.head_dim);
    args.eps = shape.norm_eps;
    args.step = step;
    args.pool = layer_pool<T>(pool, layer);
    // Few rows: divide the heads over more blocks, since the latency per head dominates.
    const std::int64_t shares = std::clamp<std::int64_t>(
        kBlocksWanted / (q.rows * count), 1, ceil_div<std::int64_t>(args.heads + 2 * args.kv_heads, kWarps));
    launch({"rope_append",
            dim3(static_cast<unsigned>(q.rows), static_cast<unsigned>(count), static_cast<unsigned>(shares)),
            dim3(kWarps * kWarpSize), stream},
           shape.norm_after_rope ? rope_append_kernel<T, true> : rope_append_kernel<T, false>, args);
  });
}

}  // namespace

void rope_angles(const std::int32_t* positions, const RopeFrequencies& rope, const Tensor& cos_sin,
                 cudaStream_t stream) {
  AnglesArgs args{};
  args.positions = positions;
  args.cos_sin = static_cast<float*>(cos_sin.data);
  args.width = static_cast<int>(cos_sin.width);
  args.magnitude = rope.magnitude;
  std::ranges::copy(rope.frequencies, args.frequencies);
  launch({"rope_angles", dim3(static_cast<unsigned>(cos_sin.rows)), dim3(64), stream}, rope_angles_kernel,
         args);
}

void rope_append(const AttentionShape& shape, const TrackWeights& q_norm, const TrackWeights& k_norm,
                 const Tensor& cos_sin, const Tensor& q, const Tensor& k, const Tensor& v,
                 const StepView& step, std::int64_t layer, const KvPool& pool, cudaStream_t stream) {
  dispatch_dtype(q.dtype, [&]<typename T>(TypeTag<T>) {
    run<T>(shape, q_norm, k_norm, cos_sin, q, k, v, step, layer, pool, stream);
  });
}

}  // namespace ptrt::cuda
