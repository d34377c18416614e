// How kernels are started, and the little that differs between nvcc and the host emulation of the CUDA
// execution model (tests/cuda_emulation, built with PTRT_CUDA_EMULATION by the C++ compiler). Every .cu
// includes this first and starts its kernels with launch() alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#ifdef PTRT_CUDA_EMULATION
#include "cuda_emulation/device_api.h"
#else
#include <cuda_runtime.h>
#endif

#include "kernels/cuda/base/cuda_check.h"
#include "kernels/cuda/base/device_traits.h"

namespace ptrt {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// A kernel may start while the one before it in its stream still runs: what it does before
// wait_for_previous() must neither read what a kernel writes nor write anything. Every thread of every kernel
// calls it, or begin_kernel(), for a kernel that ended early would let the next but one overtake its
// predecessor. (On devices before sm_90, and with code for such, a kernel starts when the one before it has
// ended.)
struct LaunchShape {
  const char* kernel = "";  // its name, for messages
  dim3 grid, block;
  cudaStream_t stream = nullptr;
  std::size_t shared_bytes = 0;  // dynamic shared memory, see shared_memory()
};

#ifdef PTRT_CUDA_EMULATION

template <class... Params, class... Args>
void launch(const LaunchShape& shape, void (*kernel)(Params...), const Args&... args) {
  emulation::count_kernel_launch();
  emulation::submit(shape.stream, [shape, kernel, ... values = static_cast<Params>(args)] {
    emulation::run_grid(shape.kernel, shape.grid, shape.block, shape.shared_bytes,
                        [&] { kernel(values...); });
  });
}

inline std::int64_t global_timer_ns() {
  return emulation::global_timer_ns();
}

inline void let_next_start() {}
inline void wait_for_previous() {
  emulation::wait_for_previous_grid();
}

// The block's dynamic shared memory, 16-byte aligned.
inline void* shared_memory() {
  return emulation::dynamic_shared_memory();
}

#else

template <class... Params, class... Args>
void launch(const LaunchShape& shape, void (*kernel)(Params...), const Args&... args) {
  constexpr std::size_t kWithoutAsking = 48 << 10;
  if (shape.shared_bytes > kWithoutAsking)
    PTRT_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(shape.shared_bytes)));
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = device_traits().kernels_overlap ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), shape.kernel, __FILE__,
             __LINE__);
}

#ifdef __CUDACC__
// A clock of the whole device; it ticks once in up to a microsecond.
__device__ inline std::int64_t global_timer_ns() {
  std::int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// The next kernel in the stream may start when all blocks of this one have called it or ended.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Waits until the kernels before this one in its stream have ended, and sees what they wrote.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline void* shared_memory() {
  extern __shared__ __align__(16) unsigned char ptrt_shared_memory[];
  return ptrt_shared_memory;
}
#endif

#endif

#if defined(PTRT_CUDA_EMULATION) || defined(__CUDACC__)
// What a kernel begins with that has nothing to do before its predecessor's end.
__device__ __forceinline__ void begin_kernel() {
  let_next_start();
  wait_for_previous();
}
#endif

template <typename T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace ptrt
