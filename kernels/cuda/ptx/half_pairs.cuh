// Arithmetic of two elements of bf16 or f16 in one register: one PTX instruction each, an equivalent in the host
// emulation. Subnormal numbers are kept.
#pragma once

#include <type_traits>

#include "kernels/cuda/base/dtypes.cuh"

#ifdef PTRT_CUDA_EMULATION
#include "kernels/base/scalar_types.h"
#endif

namespace ptrt {

#ifdef PTRT_CUDA_EMULATION
template <typename T, class Operation>
std::uint32_t each_of_pair(std::uint32_t a, std::uint32_t b, const Operation& operation) {
  constexpr bool kHalf = std::is_same_v<T, f16>;
  const auto of = [&](int shift) {
    const auto x = static_cast<std::uint16_t>(a >> shift), y = static_cast<std::uint16_t>(b >> shift);
    const std::uint16_t bits = kHalf ? to_float16(operation(from_float16(x), from_float16(y)))
                                     : to_bfloat16(operation(from_bfloat16(x), from_bfloat16(y)));
    return std::uint32_t{bits} << shift;
  };
  return of(0) | of(16);
}
#endif

// a · b, rounded once.
template <typename T>
__device__ __forceinline__ std::uint32_t multiply_pairs(std::uint32_t a, std::uint32_t b) {
#ifdef PTRT_CUDA_EMULATION
  return each_of_pair<T>(a, b, [](float x, float y) { return x * y; });
#else
  std::uint32_t product;
  if constexpr (std::is_same_v<T, f16>)
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  else  // sm_80 has no product alone: - 0 leaves the sign of a zero as it is
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
  return product;
#endif
}

// a - b, rounded once.
template <typename T>
__device__ __forceinline__ std::uint32_t subtract_pairs(std::uint32_t a, std::uint32_t b) {
#ifdef PTRT_CUDA_EMULATION
  return each_of_pair<T>(a, b, [](float x, float y) { return x - y; });
#else
  std::uint32_t difference;
  if constexpr (std::is_same_v<T, f16>)
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
  else  // b · -1 + a: sm_80 has no difference alone
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(difference) : "r"(b), "r"(0xBF80BF80u), "r"(a));
  return difference;
#endif
}

}  // namespace ptrt
