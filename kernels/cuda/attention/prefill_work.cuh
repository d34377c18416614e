// What the kernels of prefill attention are given, and which part of it a block works on: query vectors of
// one KV head (rows × heads of its group, heads side by side) of one segment.
#pragma once

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/ops/kv_page.cuh"

namespace ptrt::cuda {

template <typename T>
struct PrefillArgs {
  const T* q;
  T* out;
  std::int64_t q_stride, out_stride;  // between tracks
  int heads, kv_heads, head_dim, window;
  float scale;  // log2(e) / sqrt(head_dim): scores for powers of two
  StepView step;
  LayerPool<T> pool;
};

template <typename T>
PrefillArgs<T> prefill_args(const AttentionJob& job, const StepInput& step) {
  constexpr float kLog2E = 1.4426950408889634f;
  const AttentionShape& shape = job.shape;
  return {static_cast<const T*>(job.q.data),
          static_cast<T*>(job.out.data),
          job.q.track_stride,
          job.out.track_stride,
          static_cast<int>(shape.heads),
          static_cast<int>(shape.kv_heads),
          static_cast<int>(shape.head_dim),
          static_cast<int>(shape.window),
          kLog2E / sqrtf(static_cast<float>(shape.head_dim)),
          step.view(),
          layer_pool<T>(job.pool, job.layer)};
}

// What a block works on.
struct Work {
  int track, kv_head, group;          // group: query heads of the KV head
  int first_row, rows, first_vector;  // of the segment; first_vector: of the block, counted rows · group
  int first_position;                 // of the segment's first row
  int begin, end;                     // tokens that some row of the block sees
  const std::int32_t* pages;          // of the segment's sequence

  __device__ __forceinline__ int row_of(int query) const { return (first_vector + query) / group; }
  __device__ __forceinline__ bool there(int query) const { return row_of(query) < rows; }
  // Start of a query's vector in a tensor [tracks, rows, heads · head_dim].
  template <typename T>
  __device__ __forceinline__ std::int64_t offset(const PrefillArgs<T>& args, int query) const {
    const int head = kv_head * group + (first_vector + query) % group;
    return (static_cast<std::int64_t>(first_row + row_of(query)) * args.heads + head) * args.head_dim;
  }
};

template <int kQueries, typename T>
__device__ __forceinline__ bool find_work(const PrefillArgs<T>& args, Work& work) {
  const Segment segment = args.step.segments[blockIdx.y];
  work.track = static_cast<int>(blockIdx.z) / args.kv_heads;
  work.kv_head = static_cast<int>(blockIdx.z) % args.kv_heads;
  work.group = args.heads / args.kv_heads;
  work.first_row = segment.first_row;
  work.rows = segment.rows;
  // Late rows see the most tokens: they start first.
  work.first_vector = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
  if (work.row_of(0) >= work.rows) return false;
  work.first_position = args.step.positions[segment.first_row];
  work.pages = args.step.page_table + args.step.slots[segment.first_row] * args.step.page_table_stride;
  const int first = work.first_position + work.row_of(0);
  work.begin = args.window > 0 ? max(0, first - args.window + 1) : 0;
  work.end = work.first_position + min(work.row_of(kQueries - 1), work.rows - 1) + 1;
  return true;
}

}  // namespace ptrt::cuda
