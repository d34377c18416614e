#include "device_test.h"
#include "kernels/cuda/plugin.h"

namespace ptrt::testing {

CudaForTests make_cuda_for_tests() {
  const std::string missing = cuda_missing();
  if (!missing.empty()) return {nullptr, missing};
  return {make_cuda_backend({}), ""};
}

}  // namespace ptrt::testing
