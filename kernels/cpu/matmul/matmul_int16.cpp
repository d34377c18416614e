#include "kernels/cpu/matmul/matmul_int16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul/matmul_int16.cpp"
#include "hwy/foreach_target.h"
// foreach_target comes first
#include "kernels/base/error.h"
#include "kernels/cpu/matmul/activations.h"
#include "kernels/cpu/matmul/register_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

constexpr bool kHasProducts = true;

using IntTag = hn::Rebind<std::int32_t, FloatTag>;
using IntVec = hn::Vec<IntTag>;
constexpr IntTag kInts{};

constexpr std::int64_t kLine = kPanelOuts * 4;  // bytes of a quad of every out
constexpr int kQuads = kInt8Group / 4;          // of a group

// sum += the products of neighbouring 16-bit integers, added in pairs. GCC would add up the products of a whole group in
// another order, for which it keeps all of them in memory: it must not know what is in the sum.
HWY_INLINE void add_products(WordVec w, IntVec x, IntVec& sum) {
#if HWY_TARGET == HWY_AVX2
  sum = hn::Add(sum, IntVec{_mm256_madd_epi16(w.raw, x.raw)});
#else
  sum = hn::Add(sum, IntVec{_mm512_madd_epi16(w.raw, x.raw)});
#endif
  asm("" : "+v"(sum.raw));
}

// One quad of the panels' outs as pairs of 16-bit integers: elements 0 and 2, and 1 and 3.
template <int kPanels>
struct QuadPairs {
  WordVec even[kPanels][kPanelVectors], odd[kPanels][kPanelVectors];

  HWY_INLINE QuadPairs(const std::byte* at, std::int64_t panel_bytes) {
    const WordVec low_bytes = hn::Set(kWords, 0x00FF00FF);
    PTRT_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      PTRT_UNROLL
      for (int i = 0; i < kPanelVectors; ++i) {
        const WordVec quads = load_words(at + p * panel_bytes + i * kLanes * 4);
        even[p][i] = hn::And(quads, low_bytes);
        odd[p][i] = hn::And(hn::ShiftRight<8>(quads), low_bytes);
      }
    }
  }
};

// The records of a tile's rows (RowFormat::int16).
template <int kRows>
struct Int16Rows {
  const std::int32_t* pairs[kRows];
  const float* scales[kRows];
  const std::int32_t* offsets[kRows];

  HWY_INLINE explicit Int16Rows(const MatmulTile& tile) {
    for (int r = 0; r < kRows; ++r) {
      pairs[r] = reinterpret_cast<const std::int32_t*>(tile.x[r]);
      scales[r] = reinterpret_cast<const float*>(tile.x[r] + tile.groups * kInt8Group * 2);
      offsets[r] = reinterpret_cast<const std::int32_t*>(scales[r] + tile.groups);
    }
  }
};

// The integer sums of a group.
template <int kRows, int kPanels>
struct GroupSums {
  IntVec v[kRows][kPanels][kPanelVectors];

  HWY_INLINE GroupSums(const Int16Rows<kRows>& rows, std::int64_t g) {
    PTRT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      PTRT_UNROLL
      for (int p = 0; p < kPanels; ++p) {
        PTRT_UNROLL
        for (int i = 0; i < kPanelVectors; ++i) v[r][p][i] = hn::Set(kInts, rows.offsets[r][g]);
      }
    }
  }

  HWY_INLINE void add(const QuadPairs<kPanels>& w, const Int16Rows<kRows>& rows, std::int64_t quad) {
    PTRT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const IntVec even = hn::Set(kInts, rows.pairs[r][2 * quad]);
      PTRT_UNROLL
      for (int p = 0; p < kPanels; ++p) {
        PTRT_UNROLL
        for (int i = 0; i < kPanelVectors; ++i) add_products(w.even[p][i], even, v[r][p][i]);
      }
      const IntVec odd = hn::Set(kInts, rows.pairs[r][2 * quad + 1]);
      PTRT_UNROLL
      for (int p = 0; p < kPanels; ++p) {
        PTRT_UNROLL
        for (int i = 0; i < kPanelVectors; ++i) add_products(w.odd[p][i], odd, v[r][p][i]);
      }
    }
  }
};

// A group's integer sums and a quad of weights fill AVX2's registers; the float32 sums, needed once a group, lie in
// the first-level cache.
#if HWY_TARGET == HWY_AVX2
constexpr int kIntRows = 4;
#else
constexpr int kIntRows = 6;
#endif

// Few rows read the weights as one stream, with so many instructions a line that the processor's window holds too few
// loads: fetching ahead keeps more in flight (1.3 times the rate where it was tried; 1024 bytes did best of 512, 1024 and 2048).
constexpr std::int64_t kAhead = 1024;
constexpr int kFirstLevel = 3;

struct Int16Tile : StreamTile<Int16Tile, kIntRows> {
  using StreamTile<Int16Tile, kIntRows>::kStreamRows;
  static constexpr int kStreamChains = 1;  // the integer sums of groups do not wait for each other

  template <int kR, int kP, int kLines>
  static HWY_INLINE void run_one(const MatmulTile& tile) {
    const Int16Rows<kR> rows(tile);
    Sums<kR, kP> sums;
    for (std::int64_t g = 0; g < tile.groups; ++g) {
      const std::byte* pair = tile.panel + g / 2 * kGroupPair;
      const std::byte* at = pair + kScaleLine + g % 2 * kGroupWords;
      GroupSums<kR, kP> group(rows, g);
      PTRT_UNROLL
      for (int quad = 0; quad < kQuads; ++quad, at += kLine) {
        PTRT_UNROLL
        for (int p = 0; p < kLines; ++p)
          __builtin_prefetch(tile.prefetch + (at - tile.panel) + p * tile.panel_bytes, 0, kSecondLevel);
        if constexpr (kR <= kStreamRows && kLines == 0) __builtin_prefetch(at + kAhead, 0, kFirstLevel);
        group.add(QuadPairs<kP>(at, tile.panel_bytes), rows, g * kQuads + quad);
      }
      add_group(tile, pair + g % 2 * kGroupScales, rows, g, group, sums);
    }
    store_sums(sums, tile);
  }

  template <int kR, int kP>
  static HWY_INLINE void add_group(const MatmulTile& tile, const std::byte* scales, const Int16Rows<kR>& rows,
                                   std::int64_t g, const GroupSums<kR, kP>& group, Sums<kR, kP>& sums) {
    PTRT_UNROLL
    for (int p = 0; p < kP; ++p) {
      PTRT_UNROLL
      for (int i = 0; i < kPanelVectors; ++i) {
        const FloatVec w_scale = load_wide(
            reinterpret_cast<const hwy::float16_t*>(scales + p * tile.panel_bytes + i * kLanes * 2));
        PTRT_UNROLL
        for (int r = 0; r < kR; ++r) {
          const FloatVec scale = hn::Mul(w_scale, hn::Set(kFloats, rows.scales[r][g]));
          sums.v[r][p][i] = hn::MulAdd(hn::ConvertTo(kFloats, group.v[r][p][i]), scale, sums.v[r][p][i]);
        }
      }
    }
  }
};

void multiply_int16_simd(const MatmulBlock& block) {
  run_block<Int16Tile>(block);
}

#else

constexpr bool kHasProducts = false;

void multiply_int16_simd(const MatmulBlock& /*block*/) {
  throw_failure("internal error: no products of 16-bit integers on this instruction set");
}

#endif

bool has_int16_products_simd() {
  return kHasProducts;
}

}  // namespace
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/cpu/simd/dispatch.h"
namespace ptrt {
namespace {

PTRT_EXPORT(has_int16_products_simd);
PTRT_EXPORT(multiply_int16_simd);

}  // namespace

bool has_int16_products() {
  return PTRT_DISPATCH(has_int16_products_simd)();
}

void multiply_int16(const MatmulBlock& block) {
  PTRT_DISPATCH(multiply_int16_simd)(block);
}

}  // namespace ptrt
#endif  // HWY_ONCE
