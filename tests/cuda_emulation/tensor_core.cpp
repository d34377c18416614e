#include "cuda_emulation/tensor_core.h"

#include <cstring>

#include "cuda_emulation/execution.h"

namespace ptrt::emulation {
namespace {

struct Fragments {
  std::uint32_t a[4], b[2];
};

}  // namespace

void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                  float (*to_float)(std::uint16_t)) {
  const Location where = Location::current();
  Fragments mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  const WarpValues all = exchange(0xFFFFFFFFu, &mine, sizeof mine, "mma", where);
  const auto low = [&](std::uint32_t pair) { return to_float(static_cast<std::uint16_t>(pair)); };
  const auto high = [&](std::uint32_t pair) { return to_float(static_cast<std::uint16_t>(pair >> 16)); };
  const int group = lane() / 4, quad = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row_lane = group * 4, column = 2 * quad + i % 2;
    float sum = 0;
    for (int k = 0; k < 8; ++k) {  // pairs: k 2·k, 2·k + 1
      const auto& row = *static_cast<const Fragments*>(all.of(row_lane + k % 4));
      const auto& other = *static_cast<const Fragments*>(all.of(column * 4 + k % 4));
      const std::uint32_t x = row.a[i / 2 + 2 * (k / 4)], y = other.b[k / 4];
      sum += low(x) * low(y) + high(x) * high(y);
    }
    d[i] += sum;
  }
}

void ldmatrix_x4(std::uint32_t (&out)[4], const void* row, bool transposed) {
  const Location where = Location::current();
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) fail("ldmatrix from an unaligned address", where);
  const WarpValues rows = exchange(0xFFFFFFFFu, &row, sizeof row, "ldmatrix", where);
  const int group = lane() / 4, quad = lane() % 4;
  const auto element = [&](int matrix, int r, int column) {
    const char* from = *static_cast<const char* const*>(rows.of(8 * matrix + r));
    std::uint16_t bits;
    std::memcpy(&bits, from + 2 * column, sizeof bits);
    return std::uint32_t{bits};
  };
  for (int m = 0; m < 4; ++m)
    out[m] = transposed ? element(m, 2 * quad, group) | element(m, 2 * quad + 1, group) << 16
                        : element(m, group, 2 * quad) | element(m, group, 2 * quad + 1) << 16;
}

namespace {

// The element at `byte` of the unswizzled tile. The hardware swizzles by address.
std::uint16_t swizzled_element(const char* tile, int byte) {
  auto address = reinterpret_cast<std::uintptr_t>(tile) + static_cast<std::uintptr_t>(byte);
  address ^= (address >> 7 & 7) << 4;
  std::uint16_t bits;
  std::memcpy(&bits, reinterpret_cast<const void*>(address), sizeof bits);
  return bits;
}

// Row and column in the result of this thread's i-th accumulator.
int result_row(int i) {
  return static_cast<int>(current_place->thread.x) / kWarpLanes % 4 * 16 + lane() / 4 + i / 2 % 2 * 8;
}
int result_column(int i) {
  return i / 4 * 8 + lane() % 4 * 2 + i % 2;
}

}  // namespace

void wgmma_ss(float* d, int accumulators, SmemDescriptor a, SmemDescriptor b, bool add,
              float (*to_float)(std::uint16_t)) {
  exchange(0xFFFFFFFFu, nullptr, 0, "wgmma", Location::current());
  const auto factor = [to_float](const SmemDescriptor& x, int row, int k) {
    return to_float(swizzled_element(x.tile, row / 8 * 1024 + row % 8 * 128 + 2 * k));
  };
  for (int i = 0; i < accumulators; ++i) {
    float sum = 0;
    for (int k = 0; k < 16; ++k) sum += factor(a, result_row(i), k) * factor(b, result_column(i), k);
    d[i] = add ? d[i] + sum : sum;
  }
}

void wgmma_rs(float* d, int accumulators, const std::uint32_t (&a)[4], SmemDescriptor b,
              float (*to_float)(std::uint16_t)) {
  const WarpValues all = exchange(0xFFFFFFFFu, a, sizeof a, "wgmma", Location::current());
  const int group = lane() / 4;
  for (int i = 0; i < accumulators; ++i) {
    const int column = result_column(i), half = i / 2 % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) {
      const auto* row = static_cast<const std::uint32_t*>(all.of(group * 4 + k % 8 / 2));
      const std::uint32_t pair = row[half + k / 8 * 2];
      const float x = to_float(static_cast<std::uint16_t>(k % 2 == 0 ? pair : pair >> 16));
      sum += x * to_float(swizzled_element(b.tile, column / 64 * b.leading_byte_offset + column % 64 * 2 +
                                                       k / 8 * 1024 + k % 8 * 128));
    }
    d[i] += sum;
  }
}

}  // namespace ptrt::emulation
