// Matrix products by the instructions that multiply bfloat16 pairs (AVX-512-BF16) and int8 quads
// (AVX-512-VNNI), which the SIMD library does not have.
#pragma once

#include "kernels/cpu/matmul/matmul_tiles.h"

namespace ptrt {

// Rows in RowFormat::bfloat16 and RowFormat::int8. Only where the processor has the instructions
// (avx512_support.h).
void multiply_avx512_bfloat16(const MatmulBlock& block);
void multiply_avx512_int8(const MatmulBlock& block);

}  // namespace ptrt
