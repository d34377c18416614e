// Data types of activations and weights in kernels: dispatch by DType, conversion from and to
// float32, and vector loads.
#pragma once

#include <cuda_fp16.h>

#include <type_traits>

#include "kernels/cuda/base/launch.h"
#include "kernels/tensor.h"

namespace ptrt {

// The activation dtypes. Kernels are templates over one of them.
using bf16 = __nv_bfloat16;
using f16 = __half;

template <typename T>
struct TypeTag {};
// Calls work(TypeTag<T>{}), where T is the activation dtype that `type` names.
template <class Work>
void dispatch_dtype(DType type, const Work& work) {
  if (type == DType::float16)
    work(TypeTag<f16>{});
  else
    work(TypeTag<bf16>{});
}

// Eight elements of an activation dtype in sixteen bytes: the widest load of a thread.
struct alignas(16) Vec8 {
  std::uint32_t pair[4];  // the first of two elements is the lower half
};

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(bf16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ float to_float(f16 x) {
  return __half2float(x);
}

__device__ __forceinline__ void store(float* to, float x) {
  *to = x;
}
__device__ __forceinline__ void store(bf16* to, float x) {
  *to = __float2bfloat16_rn(x);
}
// Values beyond the range of float16 become infinite.
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

__device__ __forceinline__ Vec8 zeros8() {
  return {{0, 0, 0, 0}};
}
// Elements [at, at + 8) of a row of `width` elements; zeros beyond its end. kAligned: the row's
// address, its width and `at` are multiples of eight elements.
template <bool kAligned, typename T>
__device__ __forceinline__ Vec8 load8(const T* row, int at, int width) {
  if (at >= width) return zeros8();
  if constexpr (kAligned) {
    return *reinterpret_cast<const Vec8*>(row + at);
  } else {
    Vec8 out = zeros8();
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (at + i < width) out.pair[i / 2] |= bits_of(row[at + i]) << (16 * (i % 2));
    return out;
  }
}

}  // namespace ptrt
