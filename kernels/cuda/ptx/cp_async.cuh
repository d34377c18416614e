// cp.async: asynchronous copies from global to shared memory.
#pragma once

#include "kernels/cuda/base/launch.h"

namespace ptrt {

// Starts a copy of 16 bytes, both addresses aligned to 16; writes zeros where `valid` is false.
// Prefetches 128 bytes into the L2 cache, since neighbouring threads copy the rest.
__device__ __forceinline__ void cp_async_zfill(void* to, const void* from, bool valid) {
#ifdef PTRT_CUDA_EMULATION
  emulation::cp_async(to, from, valid ? 16 : 0);
#else
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(address), "l"(from),
               "r"(bytes)
               : "memory");
#endif
}

// Makes one group of the copies that this thread started since its last commit.
__device__ __forceinline__ void cp_async_commit() {
#ifdef PTRT_CUDA_EMULATION
  emulation::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most kPending of this thread's groups are in flight. Other threads see the data
// after a barrier.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#ifdef PTRT_CUDA_EMULATION
  emulation::cp_async_wait(kPending);
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

}  // namespace ptrt
