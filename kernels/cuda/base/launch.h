// Kernel launches, and what differs between nvcc and the host emulation of the CUDA execution model
// (tests/cuda_emulation, built by the C++ compiler with PTRT_CUDA_EMULATION). Every .cu file
// launches its kernels only through launch().
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

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Programmatic dependent launch (PDL): a kernel may start while its predecessor in the stream still
// runs. Before grid_dependency_wait() a kernel must write nothing and must not read what any kernel
// writes. Every thread of every kernel calls grid_dependency_wait() or pdl_trigger_and_wait(); a
// kernel that ended without it would let its successor overtake its predecessor. A kernel that
// writes what a collective reads does not trigger early (base/collective_memory.h): its arguments
// have triggers_early. Before sm_90 kernels of one stream never overlap.
struct LaunchShape {
  const char* kernel = "";  // the name in error messages
  dim3 grid, block;
  cudaStream_t stream = nullptr;
  std::size_t shared_bytes = 0;  // dynamic shared memory, see shared_memory()
  unsigned cluster = 1;          // blocks of a cluster along x, which divide the grid (ptx/cluster.cuh)
};

#ifdef PTRT_CUDA_EMULATION

template <class... Params, class... Args>
void launch(const LaunchShape& shape, void (*kernel)(Params...), const Args&... args) {
  emulation::count_kernel_launch();
  emulation::submit(shape.stream, [shape, kernel, ... values = static_cast<Params>(args)] {
    emulation::run_grid(shape.kernel, shape.grid, shape.block, shape.shared_bytes, shape.cluster,
                        [&] { kernel(values...); });
  });
}

inline std::int64_t global_timer_ns() {
  return emulation::global_timer_ns();
}

inline void trigger_dependent_launch() {
  emulation::trigger_dependent_launch();
}
inline void grid_dependency_wait() {
  emulation::grid_dependency_wait();
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
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (device_traits().has_pdl) {
    cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {shape.cluster, 1, 1};
  }
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), shape.kernel, __FILE__,
             __LINE__);
}

#ifdef __CUDACC__
// The device-wide clock; its resolution is up to a microsecond.
__device__ inline std::int64_t global_timer_ns() {
  std::int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// The next kernel in the stream may start once all blocks of this one have called it or ended.
__device__ inline void trigger_dependent_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Waits until all earlier kernels of the stream have ended and their writes are visible.
__device__ inline void grid_dependency_wait() {
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
// The first statement of a kernel that has nothing to do before its predecessor has ended.
__device__ __forceinline__ void pdl_trigger_and_wait(bool triggers_early = true) {
  if (triggers_early) trigger_dependent_launch();
  grid_dependency_wait();
}

// The x index of the thread in its block; its lane and its warp. Sizes of the block in threads and
// warps.
__device__ __forceinline__ int thread_id() {
  return static_cast<int>(threadIdx.x);
}
__device__ __forceinline__ int lane_id() {
  return thread_id() % kWarpSize;
}
__device__ __forceinline__ int warp_id() {
  return thread_id() / kWarpSize;
}
__device__ __forceinline__ int block_size() {
  return static_cast<int>(blockDim.x);
}
__device__ __forceinline__ int block_warps() {
  return block_size() / kWarpSize;
}
#endif

template <typename T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace ptrt
