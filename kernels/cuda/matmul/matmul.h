// Matrix products of all local tracks: y[t] = x[t] · w[t]ᵀ with x and weights of one inner type (bfloat16
// or float16), float32 sums, y of that type or float32.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "kernels/backend.h"

namespace ptrt::cuda {

// Up to this many rows a product is bound by reading its weights, and takes the kernel made for that.
inline constexpr std::int64_t kSkinnyRows = 16;

// Jobs of one launch.
inline constexpr std::size_t kSkinnyJobs = 3;

// All jobs (of equal rows) and tracks in one launch, for any number of rows and any sizes; meant for few
// rows.
void skinny_products(std::span<const LinearJob> jobs, cudaStream_t stream);
// Backend::gated_linear() in one launch, for up to kSkinnyRows rows of a width that is a multiple of 8:
// neither product is rounded or written.
void skinny_gated_product(const LinearJob& gate, const LinearJob& up, cudaStream_t stream);

}  // namespace ptrt::cuda
