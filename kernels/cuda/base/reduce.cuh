// Sums and maxima over a warp and over a block, in one fixed order.
#pragma once

#include "kernels/cuda/base/launch.h"

namespace ptrt {

// Over groups of kLanes neighbouring lanes; every lane gets the result.
template <int kLanes = kWarp>
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}
template <int kLanes = kWarp>
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, distance));
  return x;
}

// Over the block; every thread gets the result. `scratch`: a float of shared memory for each warp, which may
// be used again after the next barrier. All threads of the block call it.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) sum += scratch[warp];
  return sum;
}

}  // namespace ptrt
