#include "kernels/cuda/base/launch.h"
#include "kernels/cuda/host/timed_wait.h"

namespace ptrt::cuda {
namespace {

// One thread: the rest of the device stays free, as during a small collective.
__global__ void timed_wait_kernel(std::int64_t nanoseconds) {
  pdl_trigger_and_wait();
  const std::int64_t end = global_timer_ns() + nanoseconds;
  while (global_timer_ns() < end) {
  }
}

}  // namespace

void timed_wait(std::int64_t nanoseconds, cudaStream_t stream) {
  launch({"timed_wait", dim3(1), dim3(1), stream}, timed_wait_kernel, nanoseconds);
}

}  // namespace ptrt::cuda
