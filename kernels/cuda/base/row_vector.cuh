// Rows that a block goes through as a whole, each thread several neighbouring elements at a time: whatever
// kernel takes a row so, a thread has the same elements in the same order, and sums have the same bits.
#pragma once

#include <algorithm>

#include "kernels/cuda/base/numbers.cuh"

namespace ptrt {

inline constexpr int kMaxRowThreads = 1024;  // a row of 4096 in one round
inline constexpr int kVector = 4;            // elements a thread takes at once

inline bool takes_vectors(int width) {
  return width % kVector == 0;
}
inline dim3 row_threads(int width) {
  const int warps = ceil_div(width, (takes_vectors(width) ? kVector : 1) * kWarp);
  return dim3(static_cast<unsigned>(std::min(warps * kWarp, kMaxRowThreads)));
}

template <typename T>
struct alignas(kVector * sizeof(T)) Vector {
  T element[kVector];
};

template <typename T, int kElements>
__device__ __forceinline__ void load(const T* from, float (&to)[kElements]) {
  const auto vector = *reinterpret_cast<const Vector<T>*>(from);
#pragma unroll
  for (int i = 0; i < kElements; ++i) to[i] = widen(vector.element[i]);
}
template <typename T>
__device__ __forceinline__ void load(const T* from, float (&to)[1]) {
  to[0] = widen(*from);
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
