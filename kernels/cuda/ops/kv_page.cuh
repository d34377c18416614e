// Where keys and values lie in the pool: one head's page is [kPageTokens][head_dim], keys and values alike.
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/base/numbers.cuh"
#include "kernels/cuda/host/step_input.h"

namespace ptrt::cuda {

inline constexpr int kTokensOfPage = static_cast<int>(kPageTokens);

// The pool of one layer, by value in kernel arguments; strides in elements.
template <typename T>
struct LayerPool {
  T* data = nullptr;
  std::int64_t page_stride = 0, track_stride = 0, head_stride = 0, values_offset = 0;

  // First key of a page of one head; its values lie values_offset further.
  __device__ __forceinline__ T* keys(std::int64_t page, int track, int head) const {
    return data + page * page_stride + track * track_stride + head * head_stride;
  }
};

template <typename T>
LayerPool<T> layer_pool(const KvPool& pool, std::int64_t layer) {
  return {pool.keys<T>(0, layer, 0, 0), pool.page_stride(), pool.layers * pool.layer_stride(),
          pool.head_stride(), pool.kv_heads * pool.head_stride()};
}

__device__ __forceinline__ std::int64_t page_of(const StepView& step, int row, int position) {
  return step.page_table[step.slots[row] * step.page_table_stride + position / kTokensOfPage];
}

}  // namespace ptrt::cuda
