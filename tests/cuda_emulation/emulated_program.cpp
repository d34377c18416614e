// The program with the emulated device in place of the plug-in: kernels/cuda/plugin.h as a process has it that sees one
// GPU of its own. Ranks are processes, and NCCL's twin works between threads alone, so they need --fusion staged.
#include <fmt/format.h>
#include <unistd.h>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/host/nccl_library.h"
#include "kernels/cuda/plugin.h"

namespace ptrt {

std::string cuda_missing() {
  return "";
}
std::vector<std::string> cuda_devices() {
  return {fmt::format("EMULATED-{}", getpid())};
}
CudaVersions cuda_versions() {
  return {.driver = 13000, .runtime = 13000, .cublaslt = 130000, .nccl = cuda::nccl().version};
}
std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
  return std::make_unique<CudaBackend>("host emulation", options.graphs, options.activation_dtype);
}

}  // namespace ptrt
