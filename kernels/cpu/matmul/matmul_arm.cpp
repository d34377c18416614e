// Compiled for Armv8.2 with BF16 and I8MM as a whole, so nothing here may be an inline function that
// other files share: the linker might keep this file's copy for processors that cannot run it.
//
// Both instructions multiply two outs by two rows, several elements of `in` a step. Words of two lines
// of a panel, interleaved, are their outs; a row without a partner is multiplied twice. One row takes
// the same instruction as many, so the bits do not depend on how many there are.
#include <arm_neon.h>

#include <cstdlib>

#include "kernels/cpu/matmul/matmul_native.h"

namespace ptrt {
namespace {

#define PTRT_UNROLL _Pragma("GCC unroll 16")

constexpr int kLine = 64;                   // bytes of a word of every out
constexpr int kQuads = 4, kQuadBytes = 16;  // of four outs, in a line
static_assert(kQuads * 4 == kPanelOuts);

// Words of outs 0 and 1 (or 2 and 3) of a quad: [out][line].
struct OutWords {
  uint32x4_t first, second;
};
__attribute__((always_inline)) inline OutWords interleave(uint32x4_t line, uint32x4_t next) {
  return {vzip1q_u32(line, next), vzip2q_u32(line, next)};
}
__attribute__((always_inline)) inline uint32x4_t quad_at(const std::byte* line, int quad) {
  return vld1q_u32(reinterpret_cast<const std::uint32_t*>(line + quad * kQuadBytes));
}

// Eight bytes of two rows, one after the other.
__attribute__((always_inline)) inline uint8x16_t rows_at(const std::byte* row, const std::byte* other) {
  return vcombine_u8(vld1_u8(reinterpret_cast<const std::uint8_t*>(row)),
                     vld1_u8(reinterpret_cast<const std::uint8_t*>(other)));
}
template <int kRows>
__attribute__((always_inline)) inline uint8x16_t pair_at(const MatmulTile& tile, int pair,
                                                         std::int64_t byte) {
  const int row = 2 * pair, other = row + 1 < kRows ? row + 1 : row;
  return rows_at(tile.x[row] + byte, tile.x[other] + byte);
}

// Row `row` of a tile, four outs from `out` on.
__attribute__((always_inline)) inline void store_quad(const MatmulTile& tile, int row, std::int64_t out,
                                                      float32x4_t v) {
  float* to = tile.y[row] + tile.y_offset + out;
  if (tile.outs - out >= 4) return vst1q_f32(to, v);
  float lanes[4];
  vst1q_f32(lanes, v);
  for (std::int64_t i = 0; i < tile.outs - out; ++i) to[i] = lanes[i];
}

// What run_block() asks of a tile; Tile::run_one() computes one panel.
template <class Tile, int kMostRows>
struct PanelTile {
  static constexpr int kRows = kMostRows, kPanels = 1, kStreamRows = kMostRows, kStreamChains = 1;
  static constexpr bool kFetches = false;

  template <int kR, int kP, int kLines>
  __attribute__((noinline)) static void run(MatmulTile& tile) {
    for (std::int64_t i = tile.count; i > 0; --i, tile.advance(kP)) Tile::template run_one<kR>(tile);
  }
};

struct Bfloat16Tile : PanelTile<Bfloat16Tile, 6> {
  template <int kR>
  __attribute__((always_inline)) static void run_one(const MatmulTile& tile) {
    constexpr int kPairs = (kR + 1) / 2;
    float32x4_t sums[kPairs][kQuads][2];  // of two outs: [out][row]
    PTRT_UNROLL
    for (int p = 0; p < kPairs; ++p) {
      PTRT_UNROLL
      for (int q = 0; q < kQuads; ++q) sums[p][q][0] = sums[p][q][1] = vdupq_n_f32(0);
    }
    const std::int64_t lines = (tile.in + 1) / 2;
    const std::byte* at = tile.panel;
    std::int64_t i = 0;
    for (; i + 1 < lines; i += 2, at += 2 * kLine) multiply_lines<kR, true>(tile, at, i, sums);
    if (i < lines) multiply_lines<kR, false>(tile, at, i, sums);
    store_sums<kR>(tile, sums);
  }

  // sums += words i and i + 1 of x times those of the panel; without a next line, zeros are multiplied. Records of x
  // end with zeros up to a multiple of four elements.
  template <int kR, bool kNext, int kPairs>
  __attribute__((always_inline)) static void multiply_lines(const MatmulTile& tile, const std::byte* at,
                                                            std::int64_t i,
                                                            float32x4_t (&sums)[kPairs][kQuads][2]) {
    bfloat16x8_t x[kPairs];
    PTRT_UNROLL
    for (int p = 0; p < kPairs; ++p) x[p] = vreinterpretq_bf16_u8(pair_at<kR>(tile, p, i * 4));
    PTRT_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      const OutWords w = interleave(quad_at(at, q), kNext ? quad_at(at + kLine, q) : vdupq_n_u32(0));
      PTRT_UNROLL
      for (int p = 0; p < kPairs; ++p) {
        sums[p][q][0] = vbfmmlaq_f32(sums[p][q][0], vreinterpretq_bf16_u32(w.first), x[p]);
        sums[p][q][1] = vbfmmlaq_f32(sums[p][q][1], vreinterpretq_bf16_u32(w.second), x[p]);
      }
    }
  }

  template <int kR, int kPairs>
  __attribute__((always_inline)) static void store_sums(const MatmulTile& tile,
                                                        const float32x4_t (&sums)[kPairs][kQuads][2]) {
    PTRT_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      if (q * 4 >= tile.outs) return;
      PTRT_UNROLL
      for (int p = 0; p < kPairs; ++p) {
        store_quad(tile, 2 * p, q * 4, vuzp1q_f32(sums[p][q][0], sums[p][q][1]));
        if (2 * p + 1 < kR) store_quad(tile, 2 * p + 1, q * 4, vuzp2q_f32(sums[p][q][0], sums[p][q][1]));
      }
    }
  }
};

struct Int8Tile : PanelTile<Int8Tile, 4> {
  // Of the rows of a tile.
  template <int kR>
  struct Rows {
    const float* scales[kR];
    const std::int32_t* offsets[kR];
  };

  template <int kR>
  __attribute__((always_inline)) static void run_one(const MatmulTile& tile) {
    Rows<kR> rows;
    float32x4_t sums[kR][kQuads];
    PTRT_UNROLL
    for (int r = 0; r < kR; ++r) {
      rows.scales[r] = reinterpret_cast<const float*>(tile.x[r] + tile.groups * kInt8Group);
      rows.offsets[r] = reinterpret_cast<const std::int32_t*>(rows.scales[r] + tile.groups);
      PTRT_UNROLL
      for (int q = 0; q < kQuads; ++q) sums[r][q] = vdupq_n_f32(0);
    }
    const std::byte* pair = tile.panel;
    for (std::int64_t g = 0; g < tile.groups; ++g) {
      const std::int64_t side = g % 2;
      add_group<kR>(tile, pair + side * kGroupScales, pair + kScaleLine + side * kGroupWords, g, rows, sums);
      pair += side * kGroupPair;
    }
    PTRT_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      if (q * 4 >= tile.outs) return;
      PTRT_UNROLL
      for (int r = 0; r < kR; ++r) store_quad(tile, r, q * 4, sums[r][q]);
    }
  }

  // sums += group g: its exact integer sum, then one fused multiply-add with the scales.
  template <int kR>
  __attribute__((always_inline)) static void add_group(const MatmulTile& tile, const std::byte* scales,
                                                       const std::byte* words, std::int64_t g,
                                                       const Rows<kR>& rows,
                                                       float32x4_t (&sums)[kR][kQuads]) {
    PTRT_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      const float32x4_t w_scale = vcvt_f32_f16(vld1_f16(reinterpret_cast<const float16_t*>(scales) + q * 4));
      int32x4_t group[(kR + 1) / 2][2];
      sum_group<kR>(tile, words, g, q, rows, group);
      PTRT_UNROLL
      for (int r = 0; r < kR; ++r) {
        const int32x4_t* const of_pair = group[r / 2];
        const int32x4_t sum =
            r % 2 == 0 ? vuzp1q_s32(of_pair[0], of_pair[1]) : vuzp2q_s32(of_pair[0], of_pair[1]);
        sums[r][q] = vfmaq_f32(sums[r][q], vcvtq_f32_s32(sum), vmulq_n_f32(w_scale, rows.scales[r][g]));
      }
    }
  }

  // Of two outs each: [out][row].
  template <int kR, int kPairs>
  __attribute__((always_inline)) static void sum_group(const MatmulTile& tile, const std::byte* words,
                                                       std::int64_t g, int quad, const Rows<kR>& rows,
                                                       int32x4_t (&group)[kPairs][2]) {
    PTRT_UNROLL
    for (int p = 0; p < kPairs; ++p) {
      const int other = 2 * p + 1 < kR ? 2 * p + 1 : 2 * p;
      const int32x4_t first = vdupq_n_s32(rows.offsets[2 * p][g]),
                      second = vdupq_n_s32(rows.offsets[other][g]);
      group[p][0] = group[p][1] = vzip1q_s32(first, second);
    }
    PTRT_UNROLL
    for (int line = 0; line < kInt8Group / 4; line += 2) {
      const std::byte* at = words + line * kLine;
      const OutWords w = interleave(quad_at(at, quad), quad_at(at + kLine, quad));
      PTRT_UNROLL
      for (int p = 0; p < kPairs; ++p) {
        const int8x16_t x = vreinterpretq_s8_u8(pair_at<kR>(tile, p, g * kInt8Group + line * 4));
        group[p][0] = vusmmlaq_s32(group[p][0], vreinterpretq_u8_u32(w.first), x);
        group[p][1] = vusmmlaq_s32(group[p][1], vreinterpretq_u8_u32(w.second), x);
      }
    }
  }
};

}  // namespace

void multiply_native_bfloat16(const MatmulBlock& block) {
  run_block<Bfloat16Tile>(block);
}

bool takes_pairs_apart(std::int64_t /*rows*/) {
  return false;
}

void multiply_pairs_apart(const MatmulBlock& /*block*/) {
  std::abort();  // takes_pairs_apart() is false
}

void multiply_native_int8(const MatmulBlock& block) {
  run_block<Int8Tile>(block);
}

}  // namespace ptrt
