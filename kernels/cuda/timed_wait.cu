#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/timed_wait.h"

namespace ptrt::cuda {
namespace {

constexpr int kThreads = 256, kMostBlocks = 64;

// The time counts from when what is sent is there.
__global__ void __launch_bounds__(kThreads)
    timed_copy_kernel(const float* from, float* to, std::int64_t count, std::int64_t nanoseconds) {
  begin_kernel();
  const std::int64_t end = global_timer_ns() + nanoseconds;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step)
    to[i] = from[i];
  if (threadIdx.x != 0) return;
  while (global_timer_ns() < end) {
  }
}

}  // namespace

void timed_copy(const float* from, float* to, std::int64_t count, std::int64_t nanoseconds,
                cudaStream_t stream) {
  const auto blocks = std::clamp<std::int64_t>(ceil_div<std::int64_t>(count, 4 * kThreads), 1, kMostBlocks);
  launch({"timed_copy", dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream}, timed_copy_kernel, from,
         to, count, nanoseconds);
}

int code_architecture() {
#ifdef PTRT_CUDA_EMULATION
  return 90;
#else
  cudaFuncAttributes attributes;
  PTRT_CUDA_CHECK(cudaFuncGetAttributes(&attributes, timed_copy_kernel));
  return attributes.ptxVersion;
#endif
}

}  // namespace ptrt::cuda
