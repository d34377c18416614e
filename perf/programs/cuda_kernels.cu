#include "cuda_kernels.h"
#include "kernels/cuda/base/dtypes.cuh"

namespace ptrt {
namespace {

constexpr int kThreads = 512, kUnroll = 4;

unsigned grid_for(std::size_t units) {
  constexpr std::size_t kMost = 16384;
  return static_cast<unsigned>(std::min(kMost, ceil_div<std::size_t>(units, kThreads * kUnroll)));
}

// Grid-stride loop: a block processes runs of kThreads · kUnroll neighbouring units.
template <class Process>
__device__ __forceinline__ void for_each_run(std::size_t count, const Process& process) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * kThreads * kUnroll;
  for (std::size_t base = static_cast<std::size_t>(blockIdx.x) * kThreads * kUnroll; base < count;
       base += step)
    process(base + threadIdx.x);
}

__global__ void __launch_bounds__(kThreads) copy_kernel(const uint4* from, uint4* to, std::size_t count) {
  pdl_trigger_and_wait();
  for_each_run(count, [&](std::size_t at) {
    uint4 unit[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (at + u * kThreads < count) unit[u] = from[at + u * kThreads];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (at + u * kThreads < count) to[at + u * kThreads] = unit[u];
  });
}

__global__ void __launch_bounds__(kThreads)
    read_kernel(const uint4* from, std::size_t count, std::uint32_t* sink) {
  pdl_trigger_and_wait();
  std::uint32_t sum = 0;
  for_each_run(count, [&](std::size_t at) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint4 unit = at + u * kThreads < count ? from[at + u * kThreads] : uint4{};
      sum += unit.x ^ unit.y ^ unit.z ^ unit.w;
    }
  });
  if (sum == 0x9E3779B9u) *sink = sum;  // practically never; keeps the loads alive
}

// splitmix64's finaliser.
__device__ __forceinline__ float spread(std::size_t i, float size) {
  std::uint64_t z = (i + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return size * (static_cast<float>(z >> 40) * 0x1p-23f - 1.0f);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) fill_kernel(T* to, std::size_t count, float size) {
  pdl_trigger_and_wait();
  for_each_run(count, [&](std::size_t at) {
    for (int u = 0; u < kUnroll; ++u)
      if (at + u * kThreads < count) store(&to[at + u * kThreads], spread(at + u * kThreads, size));
  });
}

template <typename T>
void fill(void* to, std::size_t count, float size, cudaStream_t stream) {
  if (count == 0) return;
  launch({"fill", dim3(grid_for(count)), dim3(kThreads), stream}, fill_kernel<T>, static_cast<T*>(to), count,
         size);
}

}  // namespace

void copy_bytes(const void* from, void* to, std::size_t bytes, cudaStream_t stream) {
  const std::size_t count = bytes / sizeof(uint4);
  launch({"copy_bytes", dim3(grid_for(count)), dim3(kThreads), stream}, copy_kernel,
         static_cast<const uint4*>(from), static_cast<uint4*>(to), count);
}

void read_bytes(const void* from, std::size_t bytes, std::uint32_t* sink, cudaStream_t stream) {
  const std::size_t count = bytes / sizeof(uint4);
  launch({"read_bytes", dim3(grid_for(count)), dim3(kThreads), stream}, read_kernel,
         static_cast<const uint4*>(from), count, sink);
}

void fill_16bit(void* to, std::size_t count, float size, DType type, cudaStream_t stream) {
  dispatch_dtype(type, [&]<typename T>(TypeTag<T>) { fill<T>(to, count, size, stream); });
}
void fill_float32(void* to, std::size_t count, float size, cudaStream_t stream) {
  fill<float>(to, count, size, stream);
}

}  // namespace ptrt
