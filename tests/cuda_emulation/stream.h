// Streams of the emulated device. Work that a stream is given waits until somebody waits for it, as it may on
// a device: what reads results too early, or overwrites what a copy has yet to take, is found. While a stream
// is recorded its work is kept with its arguments, and a graph is that work, run again.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>

#include "kernels/base/error.h"

namespace ptrt::emulation {

// Thrown by the work of a collective whose group was ended while it waited.
class CollectiveAborted : public Error {
 public:
  CollectiveAborted() : Error(ExitCode::failure, "the collective was aborted") {}
};

// Gives `work` to a stream; without one it runs at once. Arguments must be in it by value.
void submit(cudaStream_t stream, std::function<void()> work);

std::uint64_t graph_launches();  // by this thread so far
// Kernels that this thread launched so far, those being recorded included.
std::uint64_t kernel_launches();
void count_kernel_launch();

}  // namespace ptrt::emulation
