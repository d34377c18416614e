// Error checks of CUDA calls: PTRT_CUDA_CHECK(cudaMalloc(...)) throws ptrt::Error (exit status 1)
// with the call, its source line and CUDA's own text. A source file that calls another CUDA library
// adds an overload of check_cuda() for that library's status type.
#pragma once

#include <cuda_runtime_api.h>

namespace ptrt {

// Out of line, so that sources compiled by nvcc do not include the formatting library.
[[noreturn]] void throw_cuda_error(const char* text, const char* call, const char* file, int line);

inline void check_cuda(cudaError_t status, const char* call, const char* file, int line) {
  if (status != cudaSuccess) throw_cuda_error(cudaGetErrorString(status), call, file, line);
}

}  // namespace ptrt

#define PTRT_CUDA_CHECK(call) ::ptrt::check_cuda((call), #call, __FILE__, __LINE__)
