// The CUDA backend is a plug-in of the program, libptrt_cuda.so, loaded when it is asked for: a run on the
// CPU links no CUDA library and waits for none. It lies beside the program, or in $PTRT_PLUGIN_DIR.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace ptrt {

// What the kernels are made for; a model beyond it runs on the CPU.
inline constexpr std::int64_t kCudaMaxHeadDim = 256;
inline constexpr std::int64_t kCudaMaxTracks = 64;

struct CudaOptions {
  int device = 0;      // among those that CUDA shows this process
  bool graphs = true;  // decode steps are recorded and replayed
  // Of matrices, inner activations, keys and values: bfloat16 or float16.
  DType inner = DType::bfloat16;
};

// What keeps this process from running on a GPU, for a message: the plug-in, the driver or a device is
// missing. Empty when nothing does. Loads the plug-in only where the driver has a device.
std::string cuda_missing();

// The UUIDs of the GPUs that CUDA shows this process, in CUDA's order. Throws bad_input with cuda_missing().
std::vector<std::string> cuda_devices();

// Throws bad_input with cuda_missing() where there is something.
std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options);

// What the plug-in's one entry point gives. Only a plug-in of the same interface, a digest of the headers
// that both sides are built from, gives anything.
struct CudaPlugin {
  std::string (*missing)() = nullptr;
  std::vector<std::string> (*devices)() = nullptr;
  std::unique_ptr<Backend> (*make)(const CudaOptions& options) = nullptr;
};
inline constexpr const char* kCudaPluginFile = "libptrt_cuda.so";
inline constexpr const char* kCudaPluginEntry = "ptrt_cuda_plugin";
using CudaPluginEntry = const CudaPlugin*(const char* interface);

}  // namespace ptrt
