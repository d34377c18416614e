// Vectorized access to a row that one block processes: each thread handles kVecSize neighbouring
// elements at a time. In every kernel that uses it, a thread handles the same elements in the same
// order, so that sums have the same bits.
#pragma once

#include <algorithm>

#include "kernels/cuda/base/dtypes.cuh"

namespace ptrt {

inline constexpr int kMaxRowThreads = 1024;  // a row of 4096 in one iteration
inline constexpr int kVecSize = 4;           // elements per thread and iteration

inline bool is_vectorizable(int width) {
  return width % kVecSize == 0;
}
inline dim3 row_threads(int width) {
  const int warps = ceil_div(width, (is_vectorizable(width) ? kVecSize : 1) * kWarpSize);
  return dim3(static_cast<unsigned>(std::min(warps * kWarpSize, kMaxRowThreads)));
}

template <typename T>
struct alignas(kVecSize * sizeof(T)) Vector {
  T element[kVecSize];
};

template <typename T, int kElements>
__device__ __forceinline__ void load(const T* from, float (&to)[kElements]) {
  const auto vector = *reinterpret_cast<const Vector<T>*>(from);
#pragma unroll
  for (int i = 0; i < kElements; ++i) to[i] = to_float(vector.element[i]);
}
template <typename T>
__device__ __forceinline__ void load(const T* from, float (&to)[1]) {
  to[0] = to_float(*from);
}
template <typename T, int kElements>
__device__ __forceinline__ void save(T* to, const float (&from)[kElements]) {
  if constexpr (kElements == 1) {
    store(to, from[0]);
  } else {
    Vector<T> vector;
#pragma unroll
    for (int i = 0; i < kElements; ++i) store(&vector.element[i], from[i]);
    *reinterpret_cast<Vector<T>*>(to) = vector;
  }
}

}  // namespace ptrt
