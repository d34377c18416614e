// The one way to call CUDA: PTRT_CUDA_CHECK(cudaMalloc(...)) throws an ptrt::Error (exit status 1) with the
// call, its place and CUDA's own text. A source that calls another CUDA library adds an overload of
// check_cuda() for its status type.
#pragma once

#include <cuda_runtime_api.h>

namespace ptrt {

// Kept out of line, and free of the formatting library, for the sources that nvcc compiles.
[[noreturn]] void throw_cuda_error(const char* text, const char* call, const char* file, int line);

inline void check_cuda(cudaError_t status, const char* call, const char* file, int line) {
  if (status != cudaSuccess) throw_cuda_error(cudaGetErrorString(status), call, file, line);
}

}  // namespace ptrt

#define PTRT_CUDA_CHECK(call) ::ptrt::check_cuda((call), #call, __FILE__, __LINE__)
