// Reductions over a warp and over a block, in a fixed order.
#pragma once

#include "kernels/cuda/base/launch.h"

namespace ptrt {

struct Sum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// Over each group of kLanes neighbouring lanes; every lane gets the result.
template <int kLanes = kWarpSize, typename T, class Combine>
__device__ __forceinline__ T warp_reduce(T x, const Combine& combine) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    x = combine(x, __shfl_xor_sync(kAllLanes, x, distance));
  return x;
}
template <int kLanes = kWarpSize, typename T>
__device__ __forceinline__ T warp_sum(T x) {
  return warp_reduce<kLanes>(x, Sum{});
}
template <int kLanes = kWarpSize>
__device__ __forceinline__ float warp_max(float x) {
  return warp_reduce<kLanes>(x, Max{});
}

// Over a block of `warps` warps; all of its threads call it, and every thread gets the result. T{}
// must be neutral for `combine`. `scratch`: one T of shared memory per warp; it may be reused after
// the next barrier.
template <typename T, class Combine>
__device__ __forceinline__ T block_reduce(T x, T* scratch, int warps, const Combine& combine) {
  x = warp_reduce(x, combine);
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  T result{};
  for (int warp = 0; warp < warps; ++warp) result = combine(result, scratch[warp]);
  return result;
}
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  return block_reduce(x, scratch, block_warps(), Sum{});
}

}  // namespace ptrt
