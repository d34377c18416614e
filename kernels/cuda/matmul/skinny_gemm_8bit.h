// GEMMs of skinny_gemm.h with int8 or float8 weights (cuda/host/weight_layout.h): half the bytes, which is what few
// rows are bound by. A weight's value is not rounded.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "kernels/jobs.h"

namespace ptrt::cuda {

// All jobs, of equal rows and all of one 8-bit type, and all tracks in one launch for every kSkinnyRows rows, each
// of which reads the weights. Takes any sizes.
void skinny_gemm_8bit(std::span<const LinearJob> jobs, cudaStream_t stream);
// Backend::gated_linear() likewise, for a width that is a multiple of 8 and matrices of one 8-bit type.
void skinny_gated_gemm_8bit(FfnActivation activation, const LinearJob& gate, const LinearJob& up,
                            cudaStream_t stream);

}  // namespace ptrt::cuda
