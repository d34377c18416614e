// A tile of rows by panels whose sums live in registers, for the kernels that the SIMD library compiles once per
// instruction set (matmul_tiles.h says what a tile is).

#if defined(PTRT_KERNELS_CPU_MATMUL_REGISTER_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PTRT_KERNELS_CPU_MATMUL_REGISTER_TILE_INL_H_
#undef PTRT_KERNELS_CPU_MATMUL_REGISTER_TILE_INL_H_
#else
#define PTRT_KERNELS_CPU_MATMUL_REGISTER_TILE_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/matmul/matmul_tiles.h"
#include "kernels/cpu/simd/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace {

constexpr int kPanelVectors = static_cast<int>(kPanelOuts / kLanes);
static_assert(kPanelOuts % kLanes == 0);

// Rows and panels of a tile, such that accumulators, one step of weights and an element of x fill
// the registers. The more rows, the fewer instructions widen weights.
#if HWY_TARGET == HWY_AVX3
constexpr int kTileRows = 12, kTilePanels = 2;
#elif HWY_TARGET == HWY_AVX2
constexpr int kTileRows = 6, kTilePanels = 1;
#elif HWY_ARCH_ARM_A64
constexpr int kTileRows = 6, kTilePanels = 1;
#else
constexpr int kTileRows = 2, kTilePanels = 1;
#endif
// Where products are quick enough that memory is worth a thought.
constexpr bool kWide = kTileRows > 2;

constexpr int kSecondLevel = 2;  // of the caches, for __builtin_prefetch()

template <int kRows, int kPanels>
struct Sums {
  FloatVec v[kRows][kPanels][kPanelVectors];

  // A constructor that the compiler made itself would not be for this instruction set.
  HWY_INLINE Sums() { clear(); }
  HWY_INLINE void clear() {
    PTRT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      PTRT_UNROLL
      for (int p = 0; p < kPanels; ++p) {
        PTRT_UNROLL
        for (int i = 0; i < kPanelVectors; ++i) v[r][p][i] = hn::Zero(kFloats);
      }
    }
  }
};

template <int kRows, int kPanels>
HWY_INLINE void store_sums(const Sums<kRows, kPanels>& sums, const MatmulTile& tile) {
  PTRT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    PTRT_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      PTRT_UNROLL
      for (int i = 0; i < kPanelVectors; ++i) {
        const std::int64_t out = p * kPanelOuts + i * kLanes, left = tile.outs - out;
        if (left >= kLanes) {
          hn::StoreU(sums.v[r][p][i], kFloats, tile.y[r] + tile.y_offset + out);
        } else if (left > 0) {
          store_part(sums.v[r][p][i], tile.y[r] + tile.y_offset + out, left);
        }
      }
    }
  }
}

// What run_block() asks of a tile: its size, and a run of tiles that Tile::run_one() computes one
// by one.
template <class Tile, int kMostRows>
struct StreamTile {
  static constexpr int kRows = kMostRows, kPanels = kTilePanels, kStreamRows = std::min(2, kRows);
  static constexpr int kStreamChains = kWide ? 4 : 1;
  static constexpr bool kFetches = kWide;

  template <int kR, int kP, int kLines>
  static HWY_NOINLINE void run(MatmulTile& tile) {
    for (std::int64_t i = tile.count; i > 0; --i, tile.advance(kP))
      Tile::template run_one<kR, kP, kLines>(tile);
  }
};

}  // namespace
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
