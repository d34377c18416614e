// Products of many rows as calls of cuBLASLt: tracks at an even distance are one batch.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/backend.h"
#include "kernels/cuda/matmul/matmul_lt.h"

namespace ptrt::cuda {

// Keys and values, or gate and up, of one track, as one call, since alone they are often too small to fill
// the device. False, with nothing done, where they do not lie so that they are one batch.
bool wide_pair(const LinearJob& first, const LinearJob& second, LtMatmul& lt, cudaStream_t stream);
void wide_product(const LinearJob& job, LtMatmul& lt, cudaStream_t stream);

}  // namespace ptrt::cuda
