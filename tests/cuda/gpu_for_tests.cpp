#include "device_test.h"
#include "kernels/cuda/plugin.h"

namespace ptrt::testing {

CudaForTests make_cuda_for_tests(const CudaOptions& options) {
  const std::string missing = cuda_missing();
  if (!missing.empty()) return {nullptr, missing};
  return {make_cuda_backend(options), ""};
}
bool counts_graph_launches_for_tests() {
  return false;
}
std::uint64_t graph_launches_for_tests() {
  return 0;
}

}  // namespace ptrt::testing
