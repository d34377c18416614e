// Host twins of the warp's tensor-core product and of its loads from shared memory (kernels/cuda/mma.cuh).
#pragma once

#include <cstdint>

namespace ptrt::emulation {

// `widen`: what the 16 bits of a factor stand for.
void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                 float (*widen)(std::uint16_t));
void load_matrices(std::uint32_t (&out)[4], const void* row, bool transposed);

}  // namespace ptrt::emulation
