// RMSNorm of a row by one block, each thread with the elements of row_vector.cuh: the steps that norm.cu and
// block_edges.cu share, so that their results have the same bits.
#pragma once

#include "kernels/cuda/base/reduce.cuh"
#include "kernels/cuda/base/row_vector.cuh"

namespace ptrt::cuda {

// Calls work.operator()<kElements, kPreScale>() as a row's width and its norms' rule want it.
template <class Work>
void dispatch_row(int width, bool pre_scale, const Work& work) {
  const auto with_elements = [&]<int kElements>() {
    if (pre_scale)
      work.template operator()<kElements, true>();
    else
      work.template operator()<kElements, false>();
  };
  if (is_vectorizable(width))
    with_elements.template operator()<kVecSize>();
  else
    with_elements.template operator()<1>();
}

// squares + Σ value²
template <int kElements>
__device__ __forceinline__ float add_squares(float squares, const float (&value)[kElements]) {
#pragma unroll
  for (int j = 0; j < kElements; ++j) squares += value[j] * value[j];
  return squares;
}

// As above, of value · weight with kPreScale.
template <bool kPreScale, int kElements>
__device__ __forceinline__ float add_squares(float squares, const float (&weight)[kElements],
                                             const float (&value)[kElements]) {
  float scaled[kElements];
#pragma unroll
  for (int j = 0; j < kElements; ++j) scaled[j] = kPreScale ? value[j] * weight[j] : value[j];
  return add_squares(squares, scaled);
}

// 1 / sqrt(mean(x²) + eps) of a row of `width` elements, from each thread's sum of squares. All threads of
// the block call it. `scratch`: as in block_sum().
__device__ __forceinline__ float inverse_rms(float squares, int width, float eps, float* scratch) {
  const float mean = block_sum(squares, scratch) / static_cast<float>(width);
  return 1.0f / sqrtf(mean + eps);
}

// value = value · scale · weight; with kPreScale the weight comes first.
template <bool kPreScale, int kElements>
__device__ __forceinline__ void apply_norm(float scale, const float (&weight)[kElements],
                                           float (&value)[kElements]) {
#pragma unroll
  for (int j = 0; j < kElements; ++j)
    value[j] = kPreScale ? value[j] * weight[j] * scale : value[j] * scale * weight[j];
}

}  // namespace ptrt::cuda
