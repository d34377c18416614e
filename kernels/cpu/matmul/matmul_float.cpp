#include "kernels/cpu/matmul/matmul_float.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul/matmul_float.cpp"
#include "hwy/foreach_target.h"
// foreach_target comes first
#include "kernels/cpu/matmul/activations.h"
#include "kernels/cpu/matmul/register_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace {

// How the words of a panel become floats: kElements of them, one at a time.
struct Float32Words {
  static constexpr int kElements = 1, kBytes = 4;
  using Word = FloatVec;
  static HWY_INLINE Word load(const std::byte* from) {
    return hn::LoadU(kFloats, reinterpret_cast<const float*>(from));
  }
  template <int kElement>
  static HWY_INLINE FloatVec element(Word w) {
    return w;
  }
};

struct Float16Words {
  static constexpr int kElements = 1, kBytes = 2;
  using Word = FloatVec;
  static HWY_INLINE Word load(const std::byte* from) {
    return load_wide(reinterpret_cast<const hwy::float16_t*>(from));
  }
  template <int kElement>
  static HWY_INLINE FloatVec element(Word w) {
    return w;
  }
};

struct Bfloat16Words {
  static constexpr int kElements = 2, kBytes = 4;
  using Word = WordVec;
  static HWY_INLINE Word load(const std::byte* from) { return load_words(from); }
  template <int kElement>
  static HWY_INLINE FloatVec element(Word w) {
    return widen_element<kElement>(w);
  }
};

struct Int8Words {
  static constexpr int kElements = 4, kBytes = 4;
  using Word = WordVec;
  static HWY_INLINE Word load(const std::byte* from) { return load_words(from); }
  template <int kElement>
  static HWY_INLINE FloatVec element(Word w) {
    const hn::Rebind<std::int32_t, FloatTag> ints;
    const auto byte = hn::BitCast(ints, hn::And(hn::ShiftRight<8 * kElement>(w), hn::Set(kWords, 0xFF)));
    return hn::ConvertTo(kFloats, hn::Sub(byte, hn::Set(ints, kInt8Offset)));
  }
};

// sums += x[.][k + element] · element of the words.
template <class Words, int kElement, int kRows, int kPanels>
HWY_INLINE void multiply_element(const typename Words::Word (&words)[kPanels][kPanelVectors],
                                 const float* const (&x)[kRows], std::int64_t k, Sums<kRows, kPanels>& sums) {
  FloatVec w[kPanels][kPanelVectors];
  PTRT_UNROLL
  for (int p = 0; p < kPanels; ++p) {
    PTRT_UNROLL
    for (int i = 0; i < kPanelVectors; ++i) w[p][i] = Words::template element<kElement>(words[p][i]);
  }
  PTRT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const FloatVec xv = hn::Set(kFloats, x[r][k + kElement]);
    PTRT_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      PTRT_UNROLL
      for (int i = 0; i < kPanelVectors; ++i) sums.v[r][p][i] = hn::MulAdd(w[p][i], xv, sums.v[r][p][i]);
    }
  }
}

// sums += the elements [k, k + n) of x times those of the panels; `at` is the word of element k. Fetches what lies
// there in kLines panels from tile.prefetch on.
template <class Words, int kLines, int kRows, int kPanels>
HWY_INLINE void multiply_run(const MatmulTile& tile, const std::byte* at, const float* const (&x)[kRows],
                             std::int64_t k, std::int64_t n, Sums<kRows, kPanels>& sums) {
  constexpr int kElements = Words::kElements;
  const auto load = [&](typename Words::Word(&words)[kPanels][kPanelVectors]) HWY_ATTR {
    PTRT_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      PTRT_UNROLL
      for (int i = 0; i < kPanelVectors; ++i)
        words[p][i] = Words::load(at + p * tile.panel_bytes + i * kLanes * Words::kBytes);
    }
    PTRT_UNROLL
    for (int p = 0; p < kLines; ++p)
      __builtin_prefetch(tile.prefetch + (at - tile.panel) + p * tile.panel_bytes, 0, kSecondLevel);
    at += kPanelOuts * Words::kBytes;
  };
  const std::int64_t end = k + n, whole = end - n % kElements;
  typename Words::Word words[kPanels][kPanelVectors];
  for (; k < whole; k += kElements) {
    load(words);
    multiply_element<Words, 0>(words, x, k, sums);
    if constexpr (kElements > 1) multiply_element<Words, 1>(words, x, k, sums);
    if constexpr (kElements > 2) {
      multiply_element<Words, 2>(words, x, k, sums);
      multiply_element<Words, 3>(words, x, k, sums);
    }
  }
  if (whole == end) return;
  load(words);
  multiply_element<Words, 0>(words, x, k, sums);
  if constexpr (kElements > 2) {
    if (k + 1 < end) multiply_element<Words, 1>(words, x, k, sums);
    if (k + 2 < end) multiply_element<Words, 2>(words, x, k, sums);
  }
}

template <int kRows>
HWY_INLINE void float_rows(const MatmulTile& tile, const float* (&x)[kRows]) {
  for (int r = 0; r < kRows; ++r) x[r] = reinterpret_cast<const float*>(tile.x[r]);
}

template <class Words>
struct FloatTile : StreamTile<FloatTile<Words>, kTileRows> {
  template <int kR, int kP, int kLines>
  static HWY_INLINE void run_one(const MatmulTile& tile) {
    const float* x[kR];
    float_rows(tile, x);
    Sums<kR, kP> sums;
    multiply_run<Words, kLines>(tile, tile.panel, x, 0, tile.in, sums);
    store_sums(sums, tile);
  }
};

// int8 weights: the sum of a group of q · x, then one fused multiply-add with the scales. kScaled:
// rows of x are quantised and bring scales of their own.
template <bool kScaled>
struct GroupTile : StreamTile<GroupTile<kScaled>, std::max(kTileRows / 2, 1)> {
  template <int kR, int kP, int kLines>
  static HWY_INLINE void run_one(const MatmulTile& tile) {
    const float* x[kR];
    float_rows(tile, x);
    Sums<kR, kP> sums, group;
    for (std::int64_t g = 0; g < tile.groups; ++g) {
      const std::int64_t k = g * kInt8Group;
      const std::byte* pair = tile.panel + g / 2 * kGroupPair;
      group.clear();
      multiply_run<Int8Words, kLines>(tile, pair + kScaleLine + g % 2 * kGroupWords, x, k,
                                      std::min(kInt8Group, tile.in - k), group);
      add_group(tile, pair + g % 2 * kGroupScales, x, g, group, sums);
    }
    store_sums(sums, tile);
  }

  template <int kR, int kP>
  static HWY_INLINE void add_group(const MatmulTile& tile, const std::byte* scales,
                                   const float* const (&x)[kR], std::int64_t g, const Sums<kR, kP>& group,
                                   Sums<kR, kP>& sums) {
    PTRT_UNROLL
    for (int p = 0; p < kP; ++p) {
      PTRT_UNROLL
      for (int i = 0; i < kPanelVectors; ++i) {
        const FloatVec w_scale = load_wide(
            reinterpret_cast<const hwy::float16_t*>(scales + p * tile.panel_bytes + i * kLanes * 2));
        PTRT_UNROLL
        for (int r = 0; r < kR; ++r) {
          FloatVec scale = w_scale;
          if constexpr (kScaled) scale = hn::Mul(w_scale, hn::Set(kFloats, x[r][tile.in + g]));
          sums.v[r][p][i] = hn::MulAdd(group.v[r][p][i], scale, sums.v[r][p][i]);
        }
      }
    }
  }
};

void multiply_float_simd(const MatmulBlock& block) {
  switch (block.layout.dtype) {
    case DType::float32:
      return run_block<FloatTile<Float32Words>>(block);
    case DType::float16:
      return run_block<FloatTile<Float16Words>>(block);
    case DType::bfloat16:
      return run_block<FloatTile<Bfloat16Words>>(block);
    case DType::int8:
      return run_block<GroupTile<false>>(block);
    case DType::float8_e4m3:
      return;  // no panels
  }
}

void multiply_quantised_simd(const MatmulBlock& block) {
  run_block<GroupTile<true>>(block);
}

}  // namespace
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/cpu/simd/dispatch.h"
namespace ptrt {
namespace {

PTRT_EXPORT(multiply_float_simd);
PTRT_EXPORT(multiply_quantised_simd);

}  // namespace

void multiply_float(const MatmulBlock& block) {
  PTRT_DISPATCH(multiply_float_simd)(block);
}

void multiply_quantised(const MatmulBlock& block) {
  PTRT_DISPATCH(multiply_quantised_simd)(block);
}

}  // namespace ptrt
#endif  // HWY_ONCE
