// The device side of CUDA C++ for sources built by the C++ compiler: keywords, built-in variables,
// warp operations, atomics and the few mathematical functions that the kernels use. Included by
// kernels/cuda/base/launch.h.
#pragma once

#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda_emulation/execution.h"
#include "cuda_emulation/stream.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __shared__ static  // blocks run one after the other
#define __forceinline__ inline
#define __launch_bounds__(...)

#define threadIdx (::ptrt::emulation::current_place->thread)
#define blockIdx (::ptrt::emulation::current_place->block)
#define blockDim (::ptrt::emulation::current_place->block_size)
#define gridDim (::ptrt::emulation::current_place->grid_size)

namespace ptrt::emulation {

template <typename T>
T shuffle(unsigned mask, T value, int from, const char* operation, const Location& where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kSlotBytes);
  const WarpValues values = exchange(mask, &value, sizeof value, operation, where);
  T result;
  std::memcpy(&result, values.of(from), sizeof result);
  return result;
}

// The first lane of this lane's segment of `width` lanes.
inline int segment(int width) {
  return lane() / width * width;
}

inline unsigned ballot(unsigned mask, bool vote, const char* operation, const Location& where) {
  const WarpValues values = exchange(mask, &vote, sizeof vote, operation, where);
  unsigned votes = 0;
  for (int i = 0; i < kWarpLanes; ++i)
    if ((mask >> i & 1u) != 0 && *static_cast<const bool*>(values.of(i))) votes |= 1u << i;
  return votes;
}

}  // namespace ptrt::emulation

#define PTRT_HERE ::ptrt::emulation::Location where = ::ptrt::emulation::Location::current()

inline void __syncthreads(PTRT_HERE) {
  ptrt::emulation::barrier(where);
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, PTRT_HERE) {
  ptrt::emulation::exchange(mask, nullptr, 0, "__syncwarp", where);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, PTRT_HERE) {
  using namespace ptrt::emulation;
  return shuffle(mask, value, segment(width) + from % width, "__shfl_sync", where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, PTRT_HERE) {
  using namespace ptrt::emulation;
  const int from = lane() ^ lane_mask;
  return shuffle(mask, value, from < segment(width) + width ? from : lane(), "__shfl_xor_sync", where);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, PTRT_HERE) {
  using namespace ptrt::emulation;
  const int from = lane() - static_cast<int>(delta);
  return shuffle(mask, value, from >= segment(width) ? from : lane(), "__shfl_up_sync", where);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, PTRT_HERE) {
  using namespace ptrt::emulation;
  const int from = lane() + static_cast<int>(delta);
  return shuffle(mask, value, from < segment(width) + width ? from : lane(), "__shfl_down_sync", where);
}
inline unsigned __ballot_sync(unsigned mask, int vote, PTRT_HERE) {
  return ptrt::emulation::ballot(mask, vote != 0, "__ballot_sync", where);
}
inline int __any_sync(unsigned mask, int vote, PTRT_HERE) {
  return ptrt::emulation::ballot(mask, vote != 0, "__any_sync", where) != 0;
}
inline int __all_sync(unsigned mask, int vote, PTRT_HERE) {
  return ptrt::emulation::ballot(mask, vote != 0, "__all_sync", where) == mask;
}

#undef PTRT_HERE

// Threads are never preempted, so plain accesses are atomic. Each returns the old value.
template <typename T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at = static_cast<T>(before + value);
  return before;
}
template <typename T>
T atomicMax(T* at, T value) {
  const T before = *at;
  *at = std::max(before, value);
  return before;
}
template <typename T>
T atomicMin(T* at, T value) {
  const T before = *at;
  *at = std::min(before, value);
  return before;
}
template <typename T>
T atomicExch(T* at, T value) {
  const T before = *at;
  *at = value;
  return before;
}
template <typename T>
T atomicCAS(T* at, T expected, T value) {
  const T before = *at;
  if (before == expected) *at = value;
  return before;
}

using std::max;
using std::min;

inline float __uint_as_float(unsigned bits) {
  return std::bit_cast<float>(bits);
}
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
// Byte i of the result is the one that nibble i of `selector` names, of x (0 to 3) and y (4 to 7).
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const std::uint64_t bytes = std::uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7u) * 8 & 0xFFu) << 8 * i;
  return result;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __ffs(int x) {
  return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1;
}
template <typename T>
T __ldcs(const T* from) {
  return *from;
}
template <typename T>
T __ldcg(const T* from) {
  return *from;
}
inline void __threadfence() {}
