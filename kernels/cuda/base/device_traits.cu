#include "kernels/cuda/base/device_traits.h"
#include "kernels/cuda/base/launch.h"

namespace ptrt {
namespace {

// The architecture of the code that this device runs, 80 or 90; it may be older than the device.
#ifdef PTRT_CUDA_EMULATION
int code_architecture() {
  return 90;
}
#else
__global__ void probe_kernel() {
  pdl_trigger_and_wait();
}
int code_architecture() {
  cudaFuncAttributes attributes;
  PTRT_CUDA_CHECK(cudaFuncGetAttributes(&attributes, probe_kernel));
  return attributes.ptxVersion;
}
#endif

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
  const int major = attribute(cudaDevAttrComputeCapabilityMajor);
  traits.has_pdl = traits.has_clusters = major >= 9 && code_architecture() >= 90;
  traits.has_wgmma = major == 9 && attribute(cudaDevAttrComputeCapabilityMinor) == 0;
  return traits;
}

DeviceTraits& current_traits() {
  static DeviceTraits traits = ask_device();
  return traits;
}

}  // namespace

const DeviceTraits& device_traits() {
  return current_traits();
}

void use_clusters(bool use) {
  static const bool has_clusters = current_traits().has_clusters;
  current_traits().has_clusters = use && has_clusters;
}

}  // namespace ptrt
