// Compiled for AVX-512 as a whole, so nothing here may be an inline function that other files
// share: the linker might keep this file's copy for processors that cannot run it.
#include <immintrin.h>

#include "kernels/cpu/matmul/matmul_native.h"

namespace ptrt {
namespace {

#define PTRT_UNROLL _Pragma("GCC unroll 16")

template <int kRows, int kPanels>
__attribute__((always_inline)) inline void store_sums(const __m512 (&sums)[kRows][kPanels],
                                                      const MatmulTile& tile) {
  PTRT_UNROLL
  for (int p = 0; p < kPanels; ++p) {
    const std::int64_t left = tile.outs - p * kPanelOuts;
    const __mmask16 mask = left >= kPanelOuts ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1);
    PTRT_UNROLL
    for (int r = 0; r < kRows; ++r)
      _mm512_mask_storeu_ps(tile.y[r] + tile.y_offset + p * kPanelOuts, mask, sums[r][p]);
  }
}

// The line of kLines panels at the place that `at` has in its own.
template <int kLines>
__attribute__((always_inline)) inline void prefetch_lines(const MatmulTile& tile, const std::byte* at) {
  PTRT_UNROLL
  for (int p = 0; p < kLines; ++p)
    _mm_prefetch(reinterpret_cast<const char*>(tile.prefetch + (at - tile.panel) + p * tile.panel_bytes),
                 _MM_HINT_T1);
}

// A word of x, the same in every lane.
__attribute__((always_inline)) inline __m512i broadcast(const std::byte* word) {
  return _mm512_set1_epi32(*reinterpret_cast<const std::int32_t*>(word));
}

// Few rows wait for memory: the fewer instructions a line of weights takes, the more lines are
// within the processor's window and requested at once. So the instructions below include a load,
// which GCC 12 would make a separate instruction, and loops over lines are unrolled. Sanitizers
// cannot check them and get the intrinsics.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kLoadsWithin = false;
#else
constexpr bool kLoadsWithin = true;
#endif

__attribute__((always_inline)) inline __m512i line_at(const std::byte* at) {
  return _mm512_load_si512(reinterpret_cast<const __m512i*>(at));
}

// sums += the pairs of x times those of the line of weights at `w`.
__attribute__((always_inline)) inline void add_pairs_at(const std::byte* w, __m512i x, __m512& sums) {
  if constexpr (kLoadsWithin)
    asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(x), "m"(*reinterpret_cast<const __m512i*>(w)));
  else
    sums = _mm512_dpbf16_ps(sums, (__m512bh)x, (__m512bh)line_at(w));
}

// sums += the pairs of w times the pair at `x`.
__attribute__((always_inline)) inline void add_pair_at(__m512i w, const std::byte* x, __m512& sums) {
  if constexpr (kLoadsWithin)
    asm("vdpbf16ps %2%{1to16%}, %1, %0"
        : "+v"(sums)
        : "v"(w), "m"(*reinterpret_cast<const std::int32_t*>(x)));
  else
    sums = _mm512_dpbf16_ps(sums, (__m512bh)w, (__m512bh)broadcast(x));
}

// sums += the quads of w times the quad at `x`.
__attribute__((always_inline)) inline void add_quad_at(__m512i w, const std::byte* x, __m512i& sums) {
  if constexpr (kLoadsWithin)
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(w), "m"(*reinterpret_cast<const std::int32_t*>(x)));
  else
    sums = _mm512_dpbusd_epi32(sums, w, broadcast(x));
}

// Tile::run_one() for each of tile.count.
template <class Tile>
struct TilesSideBySide {
  template <int kR, int kP, int kLines>
  __attribute__((noinline)) static void run(MatmulTile& tile) {
    for (std::int64_t i = tile.count; i > 0; --i, tile.advance(kP))
      Tile::template run_one<kR, kP, kLines>(tile);
  }
};

// Below it, products wait for memory, or nearly so.
constexpr std::int64_t kFewestRowsApart = 3;

struct Bfloat16Tile : TilesSideBySide<Bfloat16Tile> {
  static constexpr int kRows = 6, kPanels = 4, kStreamRows = 8;
  static constexpr int kStreamChains =
      4;  // a line of one panel every six cycles would be less than memory gives
  static constexpr bool kFetches = true;
  template <int kR, int kP>
  static constexpr int kUnroll = kR <= 2 || kP == 1 ? 4 : 1;

  template <int kR, int kP, int kLines>
  __attribute__((always_inline)) static void run_one(const MatmulTile& tile) {
    __m512 sums[kR][kP];
    PTRT_UNROLL
    for (int r = 0; r < kR; ++r) {
      PTRT_UNROLL
      for (int p = 0; p < kP; ++p) sums[r][p] = _mm512_setzero_ps();
    }
    const std::int64_t pairs = (tile.in + 1) / 2, whole = pairs - pairs % kUnroll<kR, kP>;
    const std::byte* at = tile.panel;
    std::int64_t i = 0;
    for (; i < whole; i += kUnroll<kR, kP>) {
      PTRT_UNROLL
      for (int u = 0; u < kUnroll<kR, kP>; ++u, at += 64) multiply_pair<kLines>(tile, at, i + u, sums);
    }
    for (; i < pairs; ++i, at += 64) multiply_pair<kLines>(tile, at, i, sums);
    store_sums(sums, tile);
  }

  // sums += pair i of x times that of the panels.
  template <int kLines, int kR, int kP>
  __attribute__((always_inline)) static void multiply_pair(const MatmulTile& tile, const std::byte* at,
                                                           std::int64_t i, __m512 (&sums)[kR][kP]) {
    prefetch_lines<kLines>(tile, at);
    if constexpr (kR == 1) {
      const __m512i x = broadcast(tile.x[0] + i * 4);
      PTRT_UNROLL
      for (int p = 0; p < kP; ++p) add_pairs_at(at + p * tile.panel_bytes, x, sums[0][p]);
    } else if constexpr (kP == 1) {
      const __m512i w = line_at(at);
      PTRT_UNROLL
      for (int r = 0; r < kR; ++r) add_pair_at(w, tile.x[r] + i * 4, sums[r][0]);
    } else {
      __m512bh w[kP];
      PTRT_UNROLL
      for (int p = 0; p < kP; ++p) w[p] = (__m512bh)line_at(at + p * tile.panel_bytes);
      PTRT_UNROLL
      for (int r = 0; r < kR; ++r) {
        const auto x = (__m512bh)broadcast(tile.x[r] + i * 4);
        PTRT_UNROLL
        for (int p = 0; p < kP; ++p) sums[r][p] = _mm512_dpbf16_ps(sums[r][p], w[p], x);
      }
    }
  }
};

// The same bits from twice as many instructions: VDPBF16PS is a fused multiply-add of the second elements and then one
// of the first, with denormals taken and given as zeros. Intel's processors do four of those in the time of one VDPBF16PS.
struct PairsTile : TilesSideBySide<PairsTile> {
  static constexpr int kRows = 12, kPanels = 2, kStreamRows = 1, kStreamChains = 4;
  static constexpr bool kFetches = true;

  template <int kR, int kP, int kLines>
  __attribute__((always_inline)) static void run_one(const MatmulTile& tile) {
    const float* x[kR];
    __m512 sums[kR][kP];
    PTRT_UNROLL
    for (int r = 0; r < kR; ++r) {
      x[r] = reinterpret_cast<const float*>(tile.x[r]);
      PTRT_UNROLL
      for (int p = 0; p < kP; ++p) sums[r][p] = _mm512_setzero_ps();
    }
    const std::byte* at = tile.panel;
    std::int64_t k = 0;
    for (; k + 1 < tile.in; k += 2, at += 64) multiply_pair<kLines, true>(tile, at, x, k, sums);
    if (k < tile.in) multiply_pair<kLines, false>(tile, at, x, k, sums);
    store_sums(sums, tile);
  }

  // sums += the elements k and, with kSecond, k + 1 of x times those of the panels; without it, zero times zero.
  template <int kLines, bool kSecond, int kR, int kP>
  __attribute__((always_inline)) static void multiply_pair(const MatmulTile& tile, const std::byte* at,
                                                           const float* const (&x)[kR], std::int64_t k,
                                                           __m512 (&sums)[kR][kP]) {
    prefetch_lines<kLines>(tile, at);
    __m512 first[kP], second[kP];
    PTRT_UNROLL
    for (int p = 0; p < kP; ++p) {
      const __m512i words = line_at(at + p * tile.panel_bytes);
      first[p] = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
      second[p] = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(-0x10000)));
    }
    PTRT_UNROLL
    for (int r = 0; r < kR; ++r) {
      const __m512 of_row = _mm512_set1_ps(kSecond ? x[r][k + 1] : 0.0f);
      PTRT_UNROLL
      for (int p = 0; p < kP; ++p) sums[r][p] = _mm512_fmadd_ps(second[p], of_row, sums[r][p]);
    }
    PTRT_UNROLL
    for (int r = 0; r < kR; ++r) {
      const __m512 of_row = _mm512_set1_ps(x[r][k]);
      PTRT_UNROLL
      for (int p = 0; p < kP; ++p) sums[r][p] = _mm512_fmadd_ps(first[p], of_row, sums[r][p]);
    }
  }
};

// While it lives, the thread's float32 instructions take and give zeros for denormals.
class DenormalsAreZeros {
 public:
  DenormalsAreZeros() : before_(_mm_getcsr()) {
    _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
  }
  ~DenormalsAreZeros() { _mm_setcsr(before_); }
  DenormalsAreZeros(const DenormalsAreZeros&) = delete;
  DenormalsAreZeros& operator=(const DenormalsAreZeros&) = delete;

 private:
  unsigned before_;
};

struct Int8Tile : TilesSideBySide<Int8Tile> {
  static constexpr int kRows = 6, kPanels = 2, kStreamRows = 8;
  static constexpr int kStreamChains = 1;  // the integer sums of groups do not wait for each other
  static constexpr bool kFetches = true;

  template <int kR, int kP, int kLines>
  __attribute__((always_inline)) static void run_one(const MatmulTile& tile) {
    const float* scales[kR];
    const std::int32_t* offsets[kR];
    __m512 sums[kR][kP];
    PTRT_UNROLL
    for (int r = 0; r < kR; ++r) {
      scales[r] = reinterpret_cast<const float*>(tile.x[r] + tile.groups * kInt8Group);
      offsets[r] = reinterpret_cast<const std::int32_t*>(scales[r] + tile.groups);
      PTRT_UNROLL
      for (int p = 0; p < kP; ++p) sums[r][p] = _mm512_setzero_ps();
    }
    const std::byte* pair = tile.panel;
    for (std::int64_t g = 0; g + 1 < tile.groups; g += 2, pair += kGroupPair) {
      add_group<0, kLines>(tile, pair, g, scales, offsets, sums);
      add_group<1, kLines>(tile, pair, g + 1, scales, offsets, sums);
    }
    if (tile.groups % 2 != 0) add_group<0, kLines>(tile, pair, tile.groups - 1, scales, offsets, sums);
    store_sums(sums, tile);
  }

  // sums += group g, the kSide of its pair.
  template <int kSide, int kLines, int kR, int kP>
  __attribute__((always_inline)) static void add_group(const MatmulTile& tile, const std::byte* pair,
                                                       std::int64_t g, const float* const (&scales)[kR],
                                                       const std::int32_t* const (&offsets)[kR],
                                                       __m512 (&sums)[kR][kP]) {
    __m512i group[kR][kP];
    PTRT_UNROLL
    for (int r = 0; r < kR; ++r) {
      PTRT_UNROLL
      for (int p = 0; p < kP; ++p) group[r][p] = _mm512_set1_epi32(offsets[r][g]);
    }
    if constexpr (kSide == 0) prefetch_lines<kLines>(tile, pair);
    multiply_group<kLines>(tile, pair + kScaleLine + kSide * kGroupWords, g, group);
    PTRT_UNROLL
    for (int p = 0; p < kP; ++p) {
      const auto* at = reinterpret_cast<const __m256i*>(pair + p * tile.panel_bytes + kSide * kGroupScales);
      const __m512 w_scale = _mm512_cvtph_ps(_mm256_load_si256(at));
      PTRT_UNROLL
      for (int r = 0; r < kR; ++r)
        sums[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(group[r][p]),
                                     _mm512_mul_ps(w_scale, _mm512_set1_ps(scales[r][g])), sums[r][p]);
    }
  }

  // group += the integer products of one group of words.
  template <int kLines, int kR, int kP>
  __attribute__((always_inline)) static void multiply_group(const MatmulTile& tile, const std::byte* at,
                                                            std::int64_t g, __m512i (&group)[kR][kP]) {
    PTRT_UNROLL
    for (int quad = 0; quad < 8; ++quad) {
      prefetch_lines<kLines>(tile, at + quad * 64);
      __m512i w[kP];
      PTRT_UNROLL
      for (int p = 0; p < kP; ++p) w[p] = line_at(at + p * tile.panel_bytes + quad * 64);
      PTRT_UNROLL
      for (int r = 0; r < kR; ++r) {
        const std::byte* word = tile.x[r] + g * kInt8Group + quad * 4;
        if constexpr (kP == 1) {
          add_quad_at(w[0], word, group[r][0]);
        } else {
          const __m512i x = broadcast(word);
          PTRT_UNROLL
          for (int p = 0; p < kP; ++p) group[r][p] = _mm512_dpbusd_epi32(group[r][p], w[p], x);
        }
      }
    }
  }
};

}  // namespace

void multiply_native_bfloat16(const MatmulBlock& block) {
  run_block<Bfloat16Tile>(block);
}

bool takes_pairs_apart(std::int64_t rows) {
  static const bool quicker = __builtin_cpu_is("intel") != 0;
  return quicker && rows >= kFewestRowsApart;
}

void multiply_pairs_apart(const MatmulBlock& block) {
  const DenormalsAreZeros as_the_pairs_do;
  run_block<PairsTile>(block);
}

void multiply_native_int8(const MatmulBlock& block) {
  run_block<Int8Tile>(block);
}

}  // namespace ptrt
