// RMSNorm of a row by one block, each thread with the elements of row_vector.cuh: the steps that norm.cu and
// block_edges.cu share, so that their results have the same bits.
#pragma once

#include "kernels/cuda/base/reduce.cuh"
#include "kernels/cuda/base/row_vector.cuh"

namespace ptrt::cuda {

// squares + Σ value²
template <int kElements>
__device__ __forceinline__ float add_squares(float squares, const float (&value)[kElements]) {
#pragma unroll
  for (int j = 0; j < kElements; ++j) squares += value[j] * value[j];
  return squares;
}

// 1 / sqrt(mean(x²) + eps) of a row of `width` elements, from each thread's sum of squares. All threads of
// the block call it. `scratch`: as in block_sum().
__device__ __forceinline__ float inverse_rms(float squares, int width, float eps, float* scratch) {
  const float mean = block_sum(squares, scratch) / static_cast<float>(width);
  return 1.0f / sqrtf(mean + eps);
}

// value = value · scale · weight
template <int kElements>
__device__ __forceinline__ void apply_norm(float scale, const float (&weight)[kElements],
                                           float (&value)[kElements]) {
#pragma unroll
  for (int j = 0; j < kElements; ++j) value[j] = value[j] * scale * weight[j];
}

}  // namespace ptrt::cuda
