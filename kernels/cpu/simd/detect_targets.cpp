#include "kernels/cpu/simd/dispatch.h"

#if HWY_ARCH_X86
#include <cpuid.h>
#elif HWY_ARCH_ARM
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace ptrt {
namespace {

#if HWY_ARCH_X86

// Two parts that not every compiler's __builtin_cpu_supports() has a name for.
bool has_lzcnt_and_f16c() {
  unsigned a = 0, b = 0, standard = 0, extended = 0, d = 0;
  return __get_cpuid(1, &a, &b, &standard, &d) != 0 && (standard & bit_F16C) != 0 &&
         __get_cpuid(0x80000001U, &a, &b, &extended, &d) != 0 && (extended & bit_LZCNT) != 0;
}

bool has_sse4() {
  return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul") &&
         __builtin_cpu_supports("aes");
}

bool has_avx2() {
  return has_sse4() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && has_lzcnt_and_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd");
}

std::int64_t detect_vectors() {
  return (has_sse4() ? HWY_SSE4 : 0) | (has_avx2() ? HWY_AVX2 : 0) | (has_avx512() ? HWY_AVX3 : 0);
}

#elif HWY_ARCH_ARM

// Highway's NEON includes the AES instructions.
std::int64_t detect_vectors() {
  return (getauxval(AT_HWCAP) & HWCAP_AES) != 0 ? HWY_NEON : 0;
}

#else

std::int64_t detect_vectors() {
  return 0;
}

#endif

}  // namespace

std::int64_t detect_simd_targets() {
  return detect_vectors() | HWY_EMU128 | HWY_ENABLED_BASELINE;
}

}  // namespace ptrt
