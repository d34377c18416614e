// GEMMs with few rows, over all local tracks: y[t] = x[t] · w[t]ᵀ (+ bias[t]) with x and weights of one
// activation dtype, float32 accumulation, y of that dtype or float32.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "kernels/jobs.h"

namespace ptrt::cuda {

// Up to this many rows a GEMM is bound by reading its weights and uses the multistage kernel.
inline constexpr std::int64_t kSkinnyRows = 16;

// Jobs per launch.
inline constexpr std::size_t kSkinnyJobs = 3;

// All jobs (of equal rows) and tracks in one launch. Takes any number of rows and any sizes;
// efficient for few rows.
void skinny_gemm(std::span<const LinearJob> jobs, cudaStream_t stream);
// Backend::gated_linear() in one launch, for up to kSkinnyRows rows of a width that is a multiple
// of 8. Neither GEMM's result is rounded or written.
void skinny_gated_gemm(FfnActivation activation, const LinearJob& gate, const LinearJob& up,
                       cudaStream_t stream);

}  // namespace ptrt::cuda
