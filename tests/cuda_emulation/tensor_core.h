// Host twins of the tensor-core products and of the loads for them from shared memory (kernels/cuda/ptx/mma.cuh).
#pragma once

#include <cstdint>

namespace ptrt::emulation {

// `widen`: what the 16 bits of a factor stand for.
void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                 float (*widen)(std::uint16_t));
void load_matrices(std::uint32_t (&out)[4], const void* row, bool transposed);

// Twins of a warpgroup's product (kernels/cuda/ptx/wgmma.cuh), done when they are queued. d: `sums` floats.
struct SharedMatrix {
  const char* tile;
  int next_columns;
  SharedMatrix at(int bytes) const { return {tile + bytes, next_columns}; }
};
void product_of_tiles(float* d, int sums, SharedMatrix a, SharedMatrix b, bool add,
                      float (*widen)(std::uint16_t));
void product_of_rows(float* d, int sums, const std::uint32_t (&a)[4], SharedMatrix b,
                     float (*widen)(std::uint16_t));

}  // namespace ptrt::emulation
