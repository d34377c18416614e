// Matrix products: which kernel takes which job.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "kernels/cuda/matmul/cublaslt.h"
#include "kernels/cuda/matmul/widened_gemm.h"
#include "kernels/jobs.h"

namespace ptrt::cuda {

class Products {
 public:
  // Before products with 8-bit matrices.
  void reserve_for_8bit() { widened_.reserve(); }
  // Backend::linear(). Matrices are of the activation type, int8 or float8, which may differ by job and track.
  void linear(std::span<const LinearJob> jobs, cudaStream_t stream);
  // Backend::gated_linear() where one kernel does it; else returns false and does nothing.
  bool gated_linear(FfnActivation activation, const LinearJob& gate, const LinearJob& up,
                    cudaStream_t stream) const;

 private:
  // The first of the jobs, all of one type, and those after it that the same launch takes; returns how many.
  std::size_t first_16bit(std::span<const LinearJob> jobs, cudaStream_t stream);
  std::size_t first_8bit(std::span<const LinearJob> jobs, cudaStream_t stream);
  static void finish_gemm_lt(const LinearJob& job, cudaStream_t stream);

  CublasLt cublaslt_;
  WidenedGemm widened_;
};

}  // namespace ptrt::cuda
