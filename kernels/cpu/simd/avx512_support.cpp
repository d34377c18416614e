#include "kernels/cpu/simd/avx512_support.h"

namespace ptrt {

#ifdef PTRT_COMPILER_HAS_AVX512

bool has_avx512_bfloat16() {
  return __builtin_cpu_supports("avx512bf16") != 0 && __builtin_cpu_supports("avx512bw") != 0;
}

bool has_avx512_int8() {
  return __builtin_cpu_supports("avx512vnni") != 0 && __builtin_cpu_supports("avx512bw") != 0;
}

#else

bool has_avx512_bfloat16() {
  return false;
}

bool has_avx512_int8() {
  return false;
}

#endif

}  // namespace ptrt
