// The CUDA backend is a plug-in, libptrt_cuda.so, loaded on demand: a run on the CPU neither links
// nor loads a CUDA library. The plug-in is beside the program, in lib/ptrt of an installation, or in
// $PTRT_PLUGIN_DIR.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace ptrt {

// Limits of the kernels; a model beyond them runs on the CPU.
inline constexpr std::int64_t kCudaMaxHeadDim = 256;
inline constexpr std::int64_t kCudaMaxTracks = 64;

struct CudaOptions {
  int device = 0;      // index among the devices that CUDA shows this process
  bool graphs = true;  // decode steps are recorded and replayed
  // bfloat16 or float16; also the dtype of matrices, keys and values.
  DType activation_dtype = DType::bfloat16;
};

// Why this process cannot run on a GPU, for a message: the plug-in, the driver or a device is
// missing. Empty if it can. Loads the plug-in only if the driver has a device.
std::string cuda_missing();

// The UUIDs of the GPUs that CUDA shows this process, in CUDA's order. Throws bad_input with
// cuda_missing().
std::vector<std::string> cuda_devices();

// Of the libraries that run, as they number themselves: 12040 for CUDA 12.4 (the newest that the driver takes, and
// the runtime's), 120402 for cuBLASLt 12.4.2, 22809 for NCCL 2.28.9. 0: not known. Throws bad_input with cuda_missing().
struct CudaVersions {
  int driver = 0, runtime = 0, cublaslt = 0, nccl = 0;
};
CudaVersions cuda_versions();

// Throws bad_input with cuda_missing() unless that is empty.
std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options);

// The result of the plug-in's entry point; null unless both sides have the same interface string, a
// digest of the headers that they are built from.
struct CudaPlugin {
  std::string (*missing)() = nullptr;
  std::vector<std::string> (*devices)() = nullptr;
  std::unique_ptr<Backend> (*make)(const CudaOptions& options) = nullptr;
  CudaVersions (*versions)() = nullptr;
};
inline constexpr const char* kCudaPluginFile = "libptrt_cuda.so";
inline constexpr const char* kCudaPluginEntry = "ptrt_cuda_plugin";
using CudaPluginEntry = const CudaPlugin*(const char* interface);

}  // namespace ptrt
