// bar.sync and bar.arrive on one of the block's sixteen barriers; __syncthreads() uses number 0.
// `threads`: how many threads, in whole warps, sync or arrive until the barrier completes.
#pragma once

#include "kernels/cuda/base/launch.h"

namespace ptrt {

__device__ __forceinline__ void named_barrier_sync(int number, int threads) {
#ifdef PTRT_CUDA_EMULATION
  emulation::named_barrier(number, threads, true);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
#endif
}
// Arrives without waiting.
__device__ __forceinline__ void named_barrier_arrive(int number, int threads) {
#ifdef PTRT_CUDA_EMULATION
  emulation::named_barrier(number, threads, false);
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
#endif
}

}  // namespace ptrt
