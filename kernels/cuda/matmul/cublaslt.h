// Batched GEMMs by cuBLASLt, behind an interface that tests implement on the host.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/cuda/host/device_memory.h"
#include "kernels/tensor.h"

namespace ptrt::cuda {

// y[b] = x[b] · w[b]ᵀ for b < batch: w [out, in] and x [rows, in] of `type`, bfloat16 or float16; y
// [rows, out] of `type` or float32, perhaps columns of a wider matrix; float32 accumulation. Strides: elements between batch items (0:
// the same for all).
struct LtProblem {
  const void* w = nullptr;
  const void* x = nullptr;
  void* y = nullptr;
  DType type = DType::bfloat16, y_type = DType::bfloat16;
  std::int64_t rows = 0, out = 0, in = 0, batch = 1;
  std::int64_t w_stride = 0, x_stride = 0, y_stride = 0;
  std::int64_t y_row = 0;  // elements from one row of y to the next
};

class CublasLt {
 public:
  CublasLt();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // in, out, y_row and the strides are multiples of 8, pointers aligned to 16 bytes. The algorithm for
  // each shape is looked up once, on the host.
  void run(const LtProblem& problem, cudaStream_t stream);

 private:
  struct Plans;
  std::unique_ptr<Plans> plans_;
};

}  // namespace ptrt::cuda
