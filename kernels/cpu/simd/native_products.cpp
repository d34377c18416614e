#include "kernels/cpu/simd/native_products.h"

#ifdef PTRT_COMPILER_HAS_ARM_PRODUCTS
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace ptrt {

#if defined(PTRT_COMPILER_HAS_AVX512)

bool has_native_bfloat16() {
  return __builtin_cpu_supports("avx512bf16") != 0 && __builtin_cpu_supports("avx512bw") != 0;
}

bool has_native_int8() {
  return __builtin_cpu_supports("avx512vnni") != 0 && __builtin_cpu_supports("avx512bw") != 0;
}

#elif defined(PTRT_COMPILER_HAS_ARM_PRODUCTS)

bool has_native_bfloat16() {
  return (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
}

bool has_native_int8() {
  return (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
}

#else

bool has_native_bfloat16() {
  return false;
}

bool has_native_int8() {
  return false;
}

#endif

}  // namespace ptrt
