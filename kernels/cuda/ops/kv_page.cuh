// Layout of keys and values in the pool: a page of one head is [kPageTokens][head_dim], for keys
// and for values.
#pragma once

#include "kernels/cuda/base/dtypes.cuh"
#include "kernels/cuda/host/step_input.h"
#include "kernels/kv_pool.h"

namespace ptrt::cuda {

inline constexpr int kPageSize = static_cast<int>(kPageTokens);

// One layer of the pool, passed to kernels by value; strides in elements.
template <typename T>
struct LayerPool {
  T* data = nullptr;
  std::int64_t page_stride = 0, track_stride = 0, head_stride = 0, values_offset = 0;

  // The keys of a page of one head; its values follow at values_offset.
  __device__ __forceinline__ T* keys(std::int64_t page, int track, int head) const {
    return data + page * page_stride + track * track_stride + head * head_stride;
  }
};

template <typename T>
LayerPool<T> layer_pool(const KvPool& pool, std::int64_t layer) {
  return {pool.keys<T>(0, layer, 0, 0), pool.page_stride(), pool.layers * pool.layer_stride(),
          pool.head_stride(), pool.kv_heads * pool.head_stride()};
}

__device__ __forceinline__ std::int64_t lookup_page(const StepView& step, int row, int position) {
  return step.page_table[step.slots[row] * step.page_table_stride + position / kPageSize];
}

}  // namespace ptrt::cuda
