// Streams of the emulated device. Queued work runs only when somebody waits for it, as it may on a
// device. So tests find code that reads results too early or overwrites the source of a pending
// copy. While a stream is captured, its work is kept with its arguments; a graph is that work, run
// again.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "kernels/base/error.h"

namespace ptrt::emulation {

// Thrown by the work of a collective whose group was aborted while it waited.
class CollectiveAborted : public Error {
 public:
  CollectiveAborted() : Error(ExitCode::failure, "the collective was aborted") {}
};

// Queues `work` in a stream; without a stream it runs at once. It must hold its arguments by value.
void submit(cudaStream_t stream, std::function<void()> work);

std::uint64_t graph_launches();  // by this thread so far
// Kernels that this thread has launched so far, including those that are captured.
std::uint64_t kernel_launches();
void count_kernel_launch();

// What this thread's stream ran last. Only a kernel can be overtaken, and only if it triggered its successor; events do
// not count, which stand in nobody's way by any promise.
void note_kernel(const char* name, bool triggered_early);
// The kernels of this name that have run on this thread's streams without triggering early.
std::uint64_t late_kernels(const std::string& name);
void note_full_edge();  // a copy, or whatever else waits for the end of all before it
// Memory that the kernel before the next one writes: that a thread copies from there before it has waited is an error.
void set_written_before(const void* data, std::size_t bytes);
void check_early_copy(const void* from, std::size_t bytes);
// Throws if the kernel before triggered early: `what` is a kernel of NCCL, which may not wait for it.
void check_not_overtaking(const char* what);

}  // namespace ptrt::emulation
