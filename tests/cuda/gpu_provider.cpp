#include "ops/fixtures/cuda_provider.h"

namespace ptrt::testing {

CudaKind cuda_kind() {
  return CudaKind::gpu;
}
CudaForTests make_cuda_for_tests(const CudaOptions& options) {
  const std::string missing = cuda_missing();
  if (!missing.empty()) return {nullptr, missing};
  return {make_cuda_backend(options), ""};
}
std::uint64_t graph_launches_for_tests() {
  return 0;
}

}  // namespace ptrt::testing
