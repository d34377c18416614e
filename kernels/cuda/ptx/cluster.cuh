// Clusters of thread blocks (PTX ISA, Cluster special registers and barrier.cluster): the blocks of a cluster run at
// the same time, have a barrier in common and read each other's shared memory. For code of sm_90 and later; a launch
// with LaunchShape::cluster above 1 asks device_traits().has_clusters first.
//
// A block must not end while others may read its shared memory, so the last of a kernel's accesses is followed by
// cluster_barrier(). Only dynamic shared memory is shared so in the host emulation, where static memory is one for all.
#pragma once

#include "kernels/cuda/base/launch.h"

namespace ptrt {

// The number of this block in its cluster.
__device__ __forceinline__ int cluster_rank() {
#ifdef PTRT_CUDA_EMULATION
  return emulation::cluster_rank();
#elif __CUDA_ARCH__ >= 900
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
#else
  return 0;
#endif
}

// All threads of all blocks of the cluster; what they wrote before, to shared memory or global, the others see after.
__device__ __forceinline__ void cluster_barrier() {
#ifdef PTRT_CUDA_EMULATION
  emulation::cluster_barrier();
#elif __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
#endif
}

// Where block `rank` of the cluster has what this block has at `mine`, in dynamic shared memory.
template <typename T>
__device__ __forceinline__ const T* in_block_of_cluster(const T* mine, int rank) {
#ifdef PTRT_CUDA_EMULATION
  return reinterpret_cast<const T*>(emulation::in_block_of_cluster(mine, rank));
#elif __CUDA_ARCH__ >= 900
  std::uint64_t theirs;
  asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(reinterpret_cast<std::uint64_t>(mine)), "r"(rank));
  return reinterpret_cast<const T*>(theirs);
#else
  return mine;
#endif
}

}  // namespace ptrt
