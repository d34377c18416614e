// RMSNorm, alone or after the sum of the residual stream.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/tensor.h"

namespace ptrt::cuda {

// out = x / sqrt(mean(x²) + eps) · w, row by row; in place when out is x. x and out: float32 both, bfloat16
// both, or from float32 to bfloat16. Weights: float32.
void rms_norm(const TrackWeights& weights, float eps, const Tensor& x, const Tensor& out,
              cudaStream_t stream);
// h += a, then out = RMSNorm(h). a: bfloat16 or float32; h: float32; out: h itself, or bfloat16 or float32.
void add_rms_norm(const Tensor& a, const Tensor& h, const TrackWeights& weights, float eps, const Tensor& out,
                  cudaStream_t stream);

}  // namespace ptrt::cuda
