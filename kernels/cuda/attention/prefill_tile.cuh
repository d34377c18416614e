// Arguments of the prefill attention kernels, and the tile of queries that a block computes: query
// vectors of one KV head (rows × query heads of its group, heads contiguous) of one prefill chunk.
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
  float scale;  // log2(e) · the scale of q · k: the softmax uses powers of two
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
          kLog2E * shape.query_scale(),
          step.view(),
          layer_pool<T>(job.pool, job.layer)};
}

// The positions [first, last] that a query sees.
struct VisibleTokens {
  int first, last;
};

// Queries are counted over rows × heads of the group; `query` below is an index within the tile.
struct QueryTile {
  int track, kv_head, group;         // group: query heads per KV head
  int first_row, rows, first_query;  // the chunk's rows; the tile's first query within the chunk
  int first_position;                // of the chunk's first row
  int kv_begin, kv_end;              // the tokens that at least one query of the tile sees
  const std::int32_t* pages;         // of the chunk's sequence

  __device__ __forceinline__ int row_of(int query) const { return (first_query + query) / group; }
  __device__ __forceinline__ bool is_valid(int query) const { return row_of(query) < rows; }
  __device__ __forceinline__ VisibleTokens visible(int query, int window) const {
    const int last = first_position + row_of(query);
    return {window > 0 ? last - window + 1 : 0, last};
  }
  // Start of a query's vector in a tensor [tracks, rows, heads · head_dim].
  template <typename T>
  __device__ __forceinline__ std::int64_t offset(const PrefillArgs<T>& args, int query) const {
    const int head = kv_head * group + (first_query + query) % group;
    return (static_cast<std::int64_t>(first_row + row_of(query)) * args.heads + head) * args.head_dim;
  }
};

// The tile of this block. Grid: x over tiles of the longest chunk, y over chunks, z over tracks and
// KV heads. False if the block's chunk is shorter, so that the block has no tile.
template <int kQueries, typename T>
__device__ __forceinline__ bool find_query_tile(const PrefillArgs<T>& args, QueryTile& tile) {
  const PrefillChunk chunk = args.step.prefill_chunks[blockIdx.y];
  tile.track = static_cast<int>(blockIdx.z) / args.kv_heads;
  tile.kv_head = static_cast<int>(blockIdx.z) % args.kv_heads;
  tile.group = args.heads / args.kv_heads;
  tile.first_row = chunk.first_row;
  tile.rows = chunk.rows;
  // The last rows see the most tokens: they start first.
  tile.first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
  if (tile.row_of(0) >= tile.rows) return false;
  tile.first_position = args.step.positions[chunk.first_row];
  tile.pages = args.step.page_table + args.step.slots[chunk.first_row] * args.step.page_table_stride;
  const int first = tile.first_position + tile.row_of(0);
  tile.kv_begin = args.window > 0 ? max(0, first - args.window + 1) : 0;
  tile.kv_end = tile.first_position + min(tile.row_of(kQueries - 1), tile.rows - 1) + 1;
  return true;
}

}  // namespace ptrt::cuda
