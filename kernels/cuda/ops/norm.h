// RMSNorm, alone or fused with the residual addition.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/jobs.h"
#include "kernels/tensor.h"

namespace ptrt::cuda {

// Backend::rms_norm() for each row; out may be x. x and out: both float32, both of
// one activation dtype (bfloat16 or float16), or from float32 to an activation dtype. Weights:
// float32.
void rms_norm(const TrackWeights& weights, NormRule rule, const Tensor& x, const Tensor& out,
              cudaStream_t stream);
// h += a, then out = RMSNorm(h). a and out: activation dtype or float32; h: float32; out may be h.
void add_rms_norm(const Tensor& a, const Tensor& h, const TrackWeights& weights, NormRule rule,
                  const Tensor& out, cudaStream_t stream);

}  // namespace ptrt::cuda
