// GEMMs with many rows, by cuBLASLt. Tracks whose weights are equally spaced form one batch.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/matmul/cublaslt.h"
#include "kernels/jobs.h"

namespace ptrt::cuda {

// Everything except the weights' stride and the batch.
LtProblem describe_gemm(const LinearJob& job);

// Two GEMMs of one track (keys and values, or gate and up) as one batch, since each alone is often
// too small to fill the device. Returns false and does nothing if their layout does not allow it.
bool gemm_lt_pair(const LinearJob& first, const LinearJob& second, CublasLt& lt, cudaStream_t stream);
void gemm_lt(const LinearJob& job, CublasLt& lt, cudaStream_t stream);

}  // namespace ptrt::cuda
