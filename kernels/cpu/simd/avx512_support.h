// The AVX-512 products that the SIMD library does not have: whether this build contains them and
// this processor runs them.
#pragma once

namespace ptrt {

bool has_avx512_bfloat16();  // AVX-512-BF16: products of bfloat16 pairs
bool has_avx512_int8();      // AVX-512-VNNI: products of int8 quads

}  // namespace ptrt
