// Element types of activations and weights in kernels: widening, rounding, and loads of several at once.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/launch.h"

namespace ptrt {

using bf16 = __nv_bfloat16;

// Sixteen bytes, eight bfloat16: the widest load a thread has.
struct alignas(16) Bf16x8 {
  std::uint32_t pair[4];  // the lower half is the first of two
};

__device__ __forceinline__ float widen(float x) {
  return x;
}
__device__ __forceinline__ float widen(bf16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ float widen(__half x) {
  return __half2float(x);
}

__device__ __forceinline__ void store(float* to, float x) {
  *to = x;
}
__device__ __forceinline__ void store(bf16* to, float x) {
  *to = __float2bfloat16_rn(x);
}

__device__ __forceinline__ std::uint32_t bits_of(bf16 x) {
  return __bfloat16_as_ushort(x);
}
// Two floats rounded to bfloat16, the first in the lower half.
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  return bits_of(__float2bfloat16_rn(low)) | bits_of(__float2bfloat16_rn(high)) << 16;
}
__device__ __forceinline__ float low_half(std::uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_half(std::uint32_t pair) {
  return __uint_as_float(pair & 0xFFFF0000u);
}
__device__ __forceinline__ void widen8(const Bf16x8& x, float (&out)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = low_half(x.pair[i]);
    out[2 * i + 1] = high_half(x.pair[i]);
  }
}

__device__ __forceinline__ float silu(float x) {
  return x / (1.0f + expf(-x));
}

__device__ __forceinline__ Bf16x8 zeros8() {
  return {{0, 0, 0, 0}};
}
// Eight elements from `at` on of a row of `width`, zeros beyond its end. kWhole: `at` and the row's start are
// multiples of eight elements, so eight are there or none.
template <bool kWhole>
__device__ __forceinline__ Bf16x8 load8(const bf16* row, int at, int width) {
  if (at >= width) return zeros8();
  if constexpr (kWhole) {
    return *reinterpret_cast<const Bf16x8*>(row + at);
  } else {
    Bf16x8 out = zeros8();
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (at + i < width) out.pair[i / 2] |= bits_of(row[at + i]) << (16 * (i % 2));
    return out;
  }
}

}  // namespace ptrt
