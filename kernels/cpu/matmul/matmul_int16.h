// int8 products on x86 processors without instructions for quads of int8 (AVX-512-VNNI): VPMADDWD multiplies pairs of
// 16-bit integers and adds the two products to 32 bits, exactly.
#pragma once

#include "kernels/cpu/matmul/matmul_tiles.h"

namespace ptrt {

// Whether the instruction set in use is AVX2 or AVX-512.
bool has_int16_products();

// Over int8 weights and rows in RowFormat::int16; only where there are such products. The bits of
// multiply_native_int8() and of multiply_quantised().
void multiply_int16(const MatmulBlock& block);

}  // namespace ptrt
