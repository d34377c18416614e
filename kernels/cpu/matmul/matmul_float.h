// Matrix products in float32 fused multiply-adds, on every instruction set, over weights of every
// type.
#pragma once

#include "kernels/cpu/matmul/matmul_tiles.h"

namespace ptrt {

// y = x · wᵀ over plain or rounded rows of x; int8 weights: q widened, their group's scale applied
// to its sum.
void multiply_float(const MatmulBlock& block);
// The same over quantised rows: group sums are exact integers, then times (weight scale · row
// scale).
void multiply_quantised(const MatmulBlock& block);

}  // namespace ptrt
