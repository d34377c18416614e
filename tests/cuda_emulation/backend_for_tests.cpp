#include "cuda/device_test.h"
#include "kernels/cuda/cuda_backend.h"

namespace ptrt::testing {

CudaForTests make_cuda_for_tests() {
  return {std::make_unique<CudaBackend>("host emulation"), ""};
}

}  // namespace ptrt::testing
