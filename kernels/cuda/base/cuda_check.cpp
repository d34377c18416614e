#include "kernels/cuda/base/cuda_check.h"

#include "kernels/base/error.h"

namespace ptrt {

void throw_cuda_error(const char* text, const char* call, const char* file, int line) {
  throw_failure("CUDA: {} in {} at {}:{}", text, call, file, line);
}

}  // namespace ptrt
