#include "cuda_emulation/tensor_core.h"

#include <cstring>

#include "cuda_emulation/execution.h"

namespace ptrt::emulation {
namespace {

using ToFloat = float (*)(std::uint16_t);

// A lane's registers with its elements widened, once for all lanes that read them.
template <int kPairs>
void widen(const std::uint32_t (&pairs)[kPairs], float (&to)[kPairs][2], ToFloat to_float) {
  for (int i = 0; i < kPairs; ++i) {
    to[i][0] = to_float(static_cast<std::uint16_t>(pairs[i]));
    to[i][1] = to_float(static_cast<std::uint16_t>(pairs[i] >> 16));
  }
}

struct Fragments {
  float a[4][2], b[2][2];
};

}  // namespace

void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], ToFloat to_float) {
  const Location where = Location::current();
  Fragments mine;
  widen(a, mine.a, to_float);
  widen(b, mine.b, to_float);
  const WarpValues all = exchange(0xFFFFFFFFu, &mine, sizeof mine, "mma", where);
  const int group = lane() / 4, quad = lane() % 4;
  const auto of = [&](int lane) { return static_cast<const Fragments*>(all.of(lane)); };
  const Fragments *rows[4], *columns[2][4];
  for (int k = 0; k < 4; ++k) {
    rows[k] = of(group * 4 + k);
    for (int column = 0; column < 2; ++column) columns[column][k] = of((2 * quad + column) * 4 + k);
  }
  for (int i = 0; i < 4; ++i) {
    float sum = 0;
    for (int k = 0; k < 8; ++k) {  // pairs: k 2·k, 2·k + 1
      const float(&x)[2] = rows[k % 4]->a[i / 2 + 2 * (k / 4)];
      const float(&y)[2] = columns[i % 2][k % 4]->b[k / 4];
      sum += x[0] * y[0] + x[1] * y[1];
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

namespace {

// d[i] = add·d[i] + the product of rows x[0] (result row of i 0 and 1) and x[1] (of 2 and 3) with
// the columns; element(column, k) is one of theirs.
template <typename Element>
void multiply_rows(float* d, int accumulators, const float (&x)[2][16], bool add, const Element& element) {
  for (int first = 0; first < accumulators; first += 4)
    for (int column = 0; column < 2; ++column) {
      float y[16];
      for (int k = 0; k < 16; ++k) y[k] = element(result_column(first + column), k);
      for (int half = 0; half < 2; ++half) {
        float& out = d[first + 2 * half + column];
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += x[half][k] * y[k];
        out = add ? out + sum : sum;
      }
    }
}

}  // namespace

void wgmma_ss(float* d, int accumulators, SmemDescriptor a, SmemDescriptor b, bool add, ToFloat to_float) {
  exchange(0xFFFFFFFFu, nullptr, 0, "wgmma", Location::current());
  const auto factor = [to_float](const SmemDescriptor& x, int row, int k) {
    return to_float(swizzled_element(x.tile, row / 8 * 1024 + row % 8 * 128 + 2 * k));
  };
  float x[2][16];
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 16; ++k) x[half][k] = factor(a, result_row(2 * half), k);
  multiply_rows(d, accumulators, x, add, [&](int column, int k) { return factor(b, column, k); });
}

void wgmma_rs(float* d, int accumulators, const std::uint32_t (&a)[4], SmemDescriptor b, ToFloat to_float) {
  float mine[4][2];
  widen(a, mine, to_float);
  const WarpValues all = exchange(0xFFFFFFFFu, mine, sizeof mine, "wgmma", Location::current());
  const int group = lane() / 4;
  float x[2][16];
  for (int k = 0; k < 16; ++k) {
    const auto* row = static_cast<const float(*)[2]>(all.of(group * 4 + k % 8 / 2));
    for (int half = 0; half < 2; ++half) x[half][k] = row[half + k / 8 * 2][k % 2];
  }
  multiply_rows(d, accumulators, x, true, [&](int column, int k) {
    return to_float(swizzled_element(
        b.tile, column / 64 * b.leading_byte_offset + column % 64 * 2 + k / 8 * 1024 + k % 8 * 128));
  });
}

}  // namespace ptrt::emulation
