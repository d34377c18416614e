// RMSNorm, alone or after the sum of the residual stream.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/tensor.h"

namespace ptrt::cuda {

// out = x / sqrt(mean(x²) + eps) · w, row by row; in place when out is x. x and out: float32 both, of one
// inner type (bfloat16 or float16) both, or from float32 to it. Weights: float32.
void rms_norm(const TrackWeights& weights, float eps, const Tensor& x, const Tensor& out,
              cudaStream_t stream);
// h += a, then out = RMSNorm(h). a and out: inner or float32; h: float32; out may be h.
void add_rms_norm(const Tensor& a, const Tensor& h, const TrackWeights& weights, float eps, const Tensor& out,
                  cudaStream_t stream);

}  // namespace ptrt::cuda
