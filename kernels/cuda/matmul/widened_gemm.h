// GEMMs with many rows and 8-bit weights: a part of the weights is widened to the activation type, then multiplied
// by cuBLASLt while it is in the L2 cache, and so on.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/host/device_memory.h"
#include "kernels/cuda/host/weight_layout.h"
#include "kernels/cuda/matmul/cublaslt.h"
#include "kernels/jobs.h"

namespace ptrt::cuda {

class WidenedGemm {
 public:
  // `bytes`: of the memory for widened weights.
  explicit WidenedGemm(std::int64_t bytes = kWidenedBytes) : bytes_(bytes) {}
  // Takes that memory, once; without it run() cannot be called.
  void reserve();
  // Matrices of one 8-bit type, sizes that are multiples of 8. The job's bias is left out.
  void run(const LinearJob& job, CublasLt& lt, cudaStream_t stream) const;

 private:
  std::int64_t bytes_;
  DevicePointer<std::byte> memory_;
};

}  // namespace ptrt::cuda
