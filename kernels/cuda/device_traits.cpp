#include "kernels/cuda/device_traits.h"

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/timed_wait.h"

namespace ptrt {
namespace {

DeviceTraits ask_device() {
  int device = 0;
  PTRT_CUDA_CHECK(cudaGetDevice(&device));
  const auto attribute = [device](cudaDeviceAttr name) {
    int value = 0;
    PTRT_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device));
    return value;
  };
  DeviceTraits traits;
  traits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  traits.shared_bytes = static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
  traits.block_shared_bytes = static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  const int major = attribute(cudaDevAttrComputeCapabilityMajor);
  traits.kernels_overlap = major >= 9 && cuda::code_architecture() >= 90;
  traits.has_wgmma = major == 9 && attribute(cudaDevAttrComputeCapabilityMinor) == 0;
  return traits;
}

}  // namespace

const DeviceTraits& device_traits() {
  static const DeviceTraits traits = ask_device();
  return traits;
}

}  // namespace ptrt
