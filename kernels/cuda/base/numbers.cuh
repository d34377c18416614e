// Element types of activations and weights in kernels: which there are, widening, rounding, and loads of
// several at once.
#pragma once

#include <cuda_fp16.h>

#include <type_traits>

#include "kernels/cuda/base/launch.h"
#include "kernels/tensor.h"

namespace ptrt {

// The inner element types: a kernel takes one of them as its template parameter.
using bf16 = __nv_bfloat16;
using f16 = __half;

template <typename T>
struct Element {};
// Calls work(Element<T>{}) with the inner type that `type` names.
template <class Work>
void with_element(DType type, const Work& work) {
  if (type == DType::float16)
    work(Element<f16>{});
  else
    work(Element<bf16>{});
}

// Sixteen bytes, eight elements of an inner type: the widest load a thread has.
struct alignas(16) Eight {
  std::uint32_t pair[4];  // the lower half is the first of two
};

__device__ __forceinline__ float widen(float x) {
  return x;
}
__device__ __forceinline__ float widen(bf16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ float widen(f16 x) {
  return __half2float(x);
}

__device__ __forceinline__ void store(float* to, float x) {
  *to = x;
}
__device__ __forceinline__ void store(bf16* to, float x) {
  *to = __float2bfloat16_rn(x);
}
// Infinite beyond the range of float16.
__device__ __forceinline__ void store(f16* to, float x) {
  *to = __float2half_rn(x);
}

__device__ __forceinline__ std::uint32_t bits_of(bf16 x) {
  return __bfloat16_as_ushort(x);
}
__device__ __forceinline__ std::uint32_t bits_of(f16 x) {
  return __half_as_ushort(x);
}
// Two floats rounded to T, the first in the lower half.
template <typename T>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<T, f16>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return bits_of(pair.x) | bits_of(pair.y) << 16;
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return bits_of(pair.x) | bits_of(pair.y) << 16;
  }
}

__device__ __forceinline__ float silu(float x) {
  return x / (1.0f + expf(-x));
}

__device__ __forceinline__ Eight zeros8() {
  return {{0, 0, 0, 0}};
}
// Eight elements from `at` on of a row of `width`, zeros beyond its end. kWhole: `at` and the row's start are
// multiples of eight elements, so eight are there or none.
template <bool kWhole, typename T>
__device__ __forceinline__ Eight load8(const T* row, int at, int width) {
  if (at >= width) return zeros8();
  if constexpr (kWhole) {
    return *reinterpret_cast<const Eight*>(row + at);
  } else {
    Eight out = zeros8();
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (at + i < width) out.pair[i / 2] |= bits_of(row[at + i]) << (16 * (i % 2));
    return out;
  }
}

}  // namespace ptrt
