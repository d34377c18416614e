#include "ops/cuda_provider.h"

namespace ptrt::testing {

CudaKind cuda_kind() {
  return CudaKind::none;
}
CudaForTests make_cuda_for_tests(const CudaOptions&) {
  return {nullptr, "this build has no CUDA headers"};
}
std::uint64_t graph_launches_for_tests() {
  return 0;
}

}  // namespace ptrt::testing
