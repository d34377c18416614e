// Matrix products by instructions that the SIMD library does not have: of bfloat16 pairs
// (AVX-512-BF16; BFMMLA on Arm) and of int8 quads (AVX-512-VNNI; USMMLA on Arm).
#pragma once

#include "kernels/cpu/matmul/matmul_tiles.h"

namespace ptrt {

// Rows in RowFormat::bfloat16 and RowFormat::int8. Only where the processor has the instructions
// (native_products.h).
void multiply_native_bfloat16(const MatmulBlock& block);
void multiply_native_int8(const MatmulBlock& block);

// Whether products of that many rows are quicker by float32 instructions, which give the bits of
// multiply_native_bfloat16(), and those products, over RowFormat::rounded.
bool takes_pairs_apart(std::int64_t rows);
void multiply_pairs_apart(const MatmulBlock& block);

}  // namespace ptrt
