// Host equivalents of mma.sync and ldmatrix (kernels/cuda/ptx/mma.cuh).
#pragma once

#include <cstdint>

namespace ptrt::emulation {

// `to_float`: converts the 16 bits of a factor's element.
void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                  float (*to_float)(std::uint16_t));
void ldmatrix_x4(std::uint32_t (&out)[4], const void* row, bool transposed);

// Host equivalents of wgmma (kernels/cuda/ptx/wgmma.cuh), executed when issued. d: `accumulators`
// floats.
struct SmemDescriptor {
  const char* tile;
  int leading_byte_offset;
  SmemDescriptor advance(int bytes) const { return {tile + bytes, leading_byte_offset}; }
};
void wgmma_ss(float* d, int accumulators, SmemDescriptor a, SmemDescriptor b, bool add,
              float (*to_float)(std::uint16_t));
void wgmma_rs(float* d, int accumulators, const std::uint32_t (&a)[4], SmemDescriptor b,
              float (*to_float)(std::uint16_t));

}  // namespace ptrt::emulation
