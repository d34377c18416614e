// Sums and maxima over a warp and over a block, in a fixed order.
#pragma once

#include "kernels/cuda/base/launch.h"

namespace ptrt {

// Over each group of kLanes neighbouring lanes; every lane gets the result.
template <int kLanes = kWarpSize>
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}
template <int kLanes = kWarpSize>
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, distance));
  return x;
}

// Over the block; all of its threads call it, and every thread gets the result. `scratch`: one
// float of shared memory per warp; it may be reused after the next barrier.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < block_warps(); ++warp) sum += scratch[warp];
  return sum;
}

}  // namespace ptrt
