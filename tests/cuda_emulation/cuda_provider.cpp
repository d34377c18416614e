#include "ops/fixtures/cuda_provider.h"

#include "cuda_emulation/stream.h"
#include "kernels/cuda/cuda_backend.h"

namespace ptrt::testing {

CudaKind cuda_kind() {
  return CudaKind::emulated;
}
CudaForTests make_cuda_for_tests(const CudaOptions& options) {
  return {std::make_unique<CudaBackend>("host emulation", options.graphs, options.activation_dtype), ""};
}
std::uint64_t graph_launches_for_tests() {
  return emulation::graph_launches();
}

}  // namespace ptrt::testing
