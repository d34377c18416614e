// The plug-in's side: its entry point and the choice of a device.
#include "kernels/cuda/plugin.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <cstring>

#include "kernels/base/error.h"
#include "kernels/cuda/base/cuda_check.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/host/nccl_collectives.h"

#ifndef PTRT_PLUGIN_INTERFACE
#error "PTRT_PLUGIN_INTERFACE comes from CMake"
#endif

namespace ptrt {
namespace {

// Kernels are built for compute capability 8.0 (bfloat16 on tensor cores) and up.
constexpr int kOldestMajor = 8;

std::string missing() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess) return fmt::format("no CUDA device: {}", cudaGetErrorString(status));
  return devices > 0 ? "" : "no CUDA device";
}

// Of a MIG instance its own: the runtime's properties may have that of the GPU, by which two instances would look like one.
// Drivers before CUDA 11.4 lack the function.
cudaUUID_t uuid_bytes(int device) {
  cudaDeviceProp properties;
  PTRT_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);  // the runtime has loaded it
  if (driver == nullptr) return properties.uuid;
  const auto get = reinterpret_cast<int (*)(int*, int)>(dlsym(driver, "cuDeviceGet"));
  const auto get_uuid = reinterpret_cast<int (*)(cudaUUID_t*, int)>(dlsym(driver, "cuDeviceGetUuid_v2"));
  int handle = 0;
  cudaUUID_t uuid;
  if (get == nullptr || get_uuid == nullptr || get(&handle, device) != 0 || get_uuid(&uuid, handle) != 0)
    return properties.uuid;
  return uuid;
}

std::string uuid_of(int device) {
  const cudaUUID_t uuid = uuid_bytes(device);
  std::string text = "GPU-";
  for (std::size_t i = 0; i < sizeof uuid.bytes; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", static_cast<unsigned char>(uuid.bytes[i]));
  }
  return text;
}

std::vector<std::string> devices() {
  int count = 0;
  PTRT_CUDA_CHECK(cudaGetDeviceCount(&count));
  std::vector<std::string> uuids;
  for (int device = 0; device < count; ++device) uuids.push_back(uuid_of(device));
  return uuids;
}

CudaVersions versions() {
  CudaVersions found;
  cudaDriverGetVersion(&found.driver);
  cudaRuntimeGetVersion(&found.runtime);
  found.cublaslt = static_cast<int>(cublasLtGetVersion());
  found.nccl = cuda::nccl_version();
  return found;
}

std::unique_ptr<Backend> make(const CudaOptions& options) {
  int count = 0;
  PTRT_CUDA_CHECK(cudaGetDeviceCount(&count));
  if (options.device < 0 || options.device >= count)
    throw_bad_input("CUDA device {}: this process sees {}", options.device, count);
  cudaDeviceProp properties;
  PTRT_CUDA_CHECK(cudaGetDeviceProperties(&properties, options.device));
  if (properties.major < kOldestMajor)
    throw_bad_input("CUDA device {} ({}) has compute capability {}.{}, {}.0 is needed", options.device,
                    properties.name, properties.major, properties.minor, kOldestMajor);
  PTRT_CUDA_CHECK(cudaSetDevice(options.device));
  return std::make_unique<CudaBackend>(
      fmt::format("{}, sm_{}{}, {} multiprocessors", properties.name, properties.major, properties.minor,
                  properties.multiProcessorCount),
      options.graphs, options.activation_dtype);
}

}  // namespace
}  // namespace ptrt

extern "C" __attribute__((visibility("default"))) const ptrt::CudaPlugin* ptrt_cuda_plugin(
    const char* interface) {
  static const ptrt::CudaPlugin plugin{&ptrt::missing, &ptrt::devices, &ptrt::make, &ptrt::versions};
  return std::strcmp(interface, PTRT_PLUGIN_INTERFACE) == 0 ? &plugin : nullptr;
}
