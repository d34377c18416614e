// Where the CUDA backend of a test executable comes from. Each executable links one of
// ops/no_cuda_provider.cpp, cuda_emulation/cuda_provider.cpp and cuda/gpu_provider.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/cuda/plugin.h"

namespace ptrt::testing {

enum class CudaKind : std::uint8_t { none, emulated, gpu };
CudaKind cuda_kind();

// A null backend comes with the reason.
struct CudaForTests {
  std::unique_ptr<Backend> backend;
  std::string missing;
};
CudaForTests make_cuda_for_tests(const CudaOptions& options = {});

// Recorded steps that were replayed so far; counted by the emulation only.
std::uint64_t graph_launches_for_tests();

}  // namespace ptrt::testing
