// The host implementation of kernels/cuda/matmul/cublaslt.h.
#include "cuda_emulation/stream.h"
#include "kernels/base/error.h"
#include "kernels/base/scalar_types.h"
#include "kernels/cuda/matmul/cublaslt.h"

namespace ptrt::cuda {
namespace {

void multiply(const LtProblem& p) {
  const auto to_float = p.type == DType::float16 ? from_float16 : from_bfloat16;
  const auto narrow = p.type == DType::float16 ? to_float16 : to_bfloat16;
  for (std::int64_t b = 0; b < p.batch; ++b) {
    const auto* w = static_cast<const std::uint16_t*>(p.w) + b * p.w_stride;
    const auto* x = static_cast<const std::uint16_t*>(p.x) + b * p.x_stride;
    for (std::int64_t r = 0; r < p.rows; ++r)
      for (std::int64_t o = 0; o < p.out; ++o) {
        float sum = 0;
        for (std::int64_t i = 0; i < p.in; ++i) sum += to_float(w[o * p.in + i]) * to_float(x[r * p.in + i]);
        const std::int64_t at = b * p.y_stride + r * p.y_row + o;
        if (p.y_type == DType::float32)
          static_cast<float*>(p.y)[at] = sum;
        else
          static_cast<std::uint16_t*>(p.y)[at] = narrow(sum);
      }
  }
}

}  // namespace

struct CublasLt::Plans {};

CublasLt::CublasLt() = default;
CublasLt::~CublasLt() = default;

void CublasLt::run(const LtProblem& p, cudaStream_t stream) {
  PTRT_CHECK(p.in % 8 == 0 && p.out % 8 == 0 && p.y_row % 8 == 0 && p.y_row >= p.out);
  PTRT_CHECK(p.type == DType::bfloat16 || p.type == DType::float16);
  PTRT_CHECK(p.y_type == p.type || p.y_type == DType::float32);
  for (const void* pointer : {p.w, p.x, static_cast<const void*>(p.y)})
    PTRT_CHECK(reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0);
  emulation::submit(stream, [p] {
    multiply(p);
    emulation::note_kernel("of cuBLASLt", true);  // it promises nothing
  });
}

}  // namespace ptrt::cuda
