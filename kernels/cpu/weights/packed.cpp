#include "kernels/cpu/weights/packed.h"

#include <algorithm>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/weights/packed.cpp"
#include "hwy/foreach_target.h"
// foreach_target comes first
#include "kernels/cpu/simd/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace {

constexpr std::int64_t kLineWords = 16;  // 32-bit words of a cache line
constexpr hn::FixedTag<std::uint32_t, 4> kFourWords{};
constexpr hn::FixedTag<std::uint64_t, 2> kTwoPairs{};
using FourWords = hn::Vec<hn::FixedTag<std::uint32_t, 4>>;

HWY_INLINE FourWords load_four(const std::byte* from) {
  return hn::LoadU(kFourWords, reinterpret_cast<const std::uint32_t*>(from));
}

// Four words of four rows: [row][word] to [word][kPanelOuts].
HWY_INLINE void transpose_four(const std::byte* from, std::int64_t row_bytes, FourWords flip, std::byte* to) {
  const FourWords a = load_four(from), b = load_four(from + row_bytes);
  const FourWords c = load_four(from + 2 * row_bytes), d = load_four(from + 3 * row_bytes);
  const auto ab_lower = hn::BitCast(kTwoPairs, hn::InterleaveLower(kFourWords, a, b));
  const auto ab_upper = hn::BitCast(kTwoPairs, hn::InterleaveUpper(kFourWords, a, b));
  const auto cd_lower = hn::BitCast(kTwoPairs, hn::InterleaveLower(kFourWords, c, d));
  const auto cd_upper = hn::BitCast(kTwoPairs, hn::InterleaveUpper(kFourWords, c, d));
  const auto put = [&](std::int64_t word, hn::Vec<decltype(kTwoPairs)> v) HWY_ATTR {
    hn::StoreU(hn::Xor(hn::BitCast(kFourWords, v), flip), kFourWords,
               reinterpret_cast<std::uint32_t*>(to + word * kPanelOuts * 4));
  };
  put(0, hn::InterleaveLower(kTwoPairs, ab_lower, cd_lower));
  put(1, hn::InterleaveUpper(kTwoPairs, ab_lower, cd_lower));
  put(2, hn::InterleaveLower(kTwoPairs, ab_upper, cd_upper));
  put(3, hn::InterleaveUpper(kTwoPairs, ab_upper, cd_upper));
}

// 16 words of every row of a panel: a whole cache line of a row at a time, so that each line is
// fetched once for any distance of the rows.
HWY_INLINE void transpose_line(const std::byte* from, std::int64_t row_bytes, FourWords flip, std::byte* to) {
  for (std::int64_t row = 0; row < kPanelOuts; row += 4)
    for (std::int64_t word = 0; word < kLineWords; word += 4)
      transpose_four(from + row * row_bytes + word * 4, row_bytes, flip, to + (word * kPanelOuts + row) * 4);
}

void transpose_lines_simd(const std::byte* from, std::int64_t row_bytes, std::int64_t lines,
                          std::uint32_t flip, std::byte* to, std::int64_t to_stride) {
  const FourWords flips = hn::Set(kFourWords, flip);
  for (std::int64_t line = 0; line < lines; ++line)
    transpose_line(from + line * kLineWords * 4, row_bytes, flips, to + line * to_stride);
}

// The same for words of 16 bits, 32 of them in a line.
void transpose_half_lines_simd(const std::byte* from, std::int64_t row_bytes, std::int64_t lines,
                               std::byte* to) {
  const hn::Rebind<std::int32_t, FloatTag> ints;
  const hn::Rebind<std::uint16_t, FloatTag> halves;
  HWY_ALIGN std::uint32_t pairs[kLineWords * kPanelOuts];
  auto* out = reinterpret_cast<std::uint16_t*>(to);
  for (std::int64_t line = 0; line < lines; ++line) {
    transpose_line(from + line * kLineWords * 4, row_bytes, hn::Zero(kFourWords),
                   reinterpret_cast<std::byte*>(pairs));
    for (std::int64_t word = 0; word < kLineWords; ++word, out += 2 * kPanelOuts)
      for (std::int64_t o = 0; o < kPanelOuts; o += kLanes) {
        const auto both = hn::Load(kWords, pairs + word * kPanelOuts + o);
        const auto low = hn::And(both, hn::Set(kWords, 0xFFFF)), high = hn::ShiftRight<16>(both);
        hn::StoreU(hn::DemoteTo(halves, hn::BitCast(ints, low)), halves, out + o);
        hn::StoreU(hn::DemoteTo(halves, hn::BitCast(ints, high)), halves, out + kPanelOuts + o);
      }
  }
}

}  // namespace
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/base/error.h"
#include "kernels/base/scalar_types.h"
#include "kernels/cpu/simd/dispatch.h"
#include "kernels/int8.h"

namespace ptrt {
namespace {

PTRT_EXPORT(transpose_lines_simd);
PTRT_EXPORT(transpose_half_lines_simd);

constexpr std::int64_t kLine = 64;
constexpr std::uint32_t kInt8Flip = 0x80808080u;  // q ^ 0x80 is q + 128 as an unsigned byte

std::int64_t whole_lines(std::int64_t bytes) {
  return (bytes + kLine - 1) / kLine * kLine;
}

template <typename T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// Transposes rows of words, `bytes` of each and `row_bytes` apart, into [words][kPanelOuts], `flip`
// applied to every word. Missing rows, and the bytes of a last word that the row does not fill, are
// `flip` applied to zero.
template <typename Word>
void pack_words(const std::byte* from, std::int64_t rows, std::int64_t bytes, std::int64_t row_bytes,
                Word flip, std::byte* to) {
  constexpr auto kWord = static_cast<std::int64_t>(sizeof(Word));
  const auto put = [to](std::int64_t word, std::int64_t out, Word value) {
    std::memcpy(to + (word * kPanelOuts + out) * kWord, &value, sizeof(Word));
  };
  const std::int64_t words = bytes / kWord, left = bytes % kWord;
  for (std::int64_t w = 0; w < words; ++w) {
    const std::byte* at = from + w * kWord;
    for (std::int64_t o = 0; o < rows; ++o, at += row_bytes) put(w, o, load<Word>(at) ^ flip);
    for (std::int64_t o = rows; o < kPanelOuts; ++o) put(w, o, flip);
  }
  if (left == 0) return;
  for (std::int64_t o = 0; o < kPanelOuts; ++o) {
    Word value = 0;
    if (o < rows) std::memcpy(&value, from + o * row_bytes + words * kWord, static_cast<std::size_t>(left));
    put(words, o, value ^ flip);
  }
}

// Whole lines of whole panels by vectors, the rest word by word.
void pack_words_of_32(const std::byte* from, std::int64_t rows, std::int64_t row_bytes, std::byte* to) {
  const std::int64_t lines = rows == kPanelOuts ? row_bytes / kLine : 0;
  PTRT_DISPATCH(transpose_lines_simd)(from, row_bytes, lines, 0, to, kLine * kPanelOuts);
  const std::int64_t done = lines * kLine;
  pack_words<std::uint32_t>(from + done, rows, row_bytes - done, row_bytes, 0, to + done * kPanelOuts);
}

void pack_words_of_16(const std::byte* from, std::int64_t rows, std::int64_t row_bytes, std::byte* to) {
  const std::int64_t lines = rows == kPanelOuts ? row_bytes / kLine : 0;
  PTRT_DISPATCH(transpose_half_lines_simd)(from, row_bytes, lines, to);
  const std::int64_t done = lines * kLine;
  pack_words<std::uint16_t>(from + done, rows, row_bytes - done, row_bytes, 0, to + done * kPanelOuts);
}

// Where a group's scales and words are in a panel.
std::int64_t scales_at(std::int64_t group) {
  return group / 2 * kGroupPair + group % 2 * kGroupScales;
}

std::int64_t words_at(std::int64_t group) {
  return group / 2 * kGroupPair + kScaleLine + group % 2 * kGroupWords;
}

void pack_int8(const PackedLayout& layout, const std::byte* from, const std::uint16_t* scales,
               std::int64_t rows, std::byte* panel) {
  const std::int64_t groups = layout.groups();
  const std::int64_t pairs = rows == kPanelOuts ? layout.in / (2 * kInt8Group) : 0;  // of whole groups
  PTRT_DISPATCH(transpose_lines_simd)
  (from, layout.in, pairs, kInt8Flip, panel + kScaleLine, kGroupPair);
  for (std::int64_t g = 2 * pairs; g < groups; ++g) {
    const std::int64_t begin = g * kInt8Group, bytes = std::min(kInt8Group, layout.in - begin);
    std::byte* words = panel + words_at(g);
    pack_words<std::uint32_t>(from + begin, rows, bytes, layout.in, kInt8Flip, words);
    const std::int64_t packed = (bytes + 3) / 4 * 4 * kPanelOuts;
    std::memset(words + packed, kInt8Offset, static_cast<std::size_t>(kGroupWords - packed));
  }
  for (std::int64_t g = 0; g < groups; ++g)
    for (std::int64_t o = 0; o < kPanelOuts; ++o) {
      const std::uint16_t scale = o < rows ? scales[o * groups + g] : 0;
      std::memcpy(panel + scales_at(g) + o * 2, &scale, sizeof(scale));
    }
  if (groups % 2 != 0)
    std::memset(panel + scales_at(groups - 1) + kGroupScales, 0, static_cast<std::size_t>(kGroupScales));
}

// The inverse of pack_words(); what a word has beyond a row's bytes is dropped.
template <typename Word>
void unpack_words(const std::byte* from, std::int64_t rows, std::int64_t bytes, std::int64_t row_bytes,
                  Word flip, std::byte* to) {
  constexpr auto kWord = static_cast<std::int64_t>(sizeof(Word));
  for (std::int64_t at = 0; at < bytes; at += kWord, from += kPanelOuts * kWord) {
    const auto size = static_cast<std::size_t>(std::min(kWord, bytes - at));
    for (std::int64_t o = 0; o < rows; ++o) {
      const Word value = load<Word>(from + o * kWord) ^ flip;
      std::memcpy(to + o * row_bytes + at, &value, size);
    }
  }
}

void unpack_int8(const PackedLayout& layout, const std::byte* panel, std::int64_t rows, std::byte* to,
                 std::uint16_t* scales) {
  for (std::int64_t g = 0; g < layout.groups(); ++g) {
    const std::int64_t begin = g * kInt8Group, bytes = std::min(kInt8Group, layout.in - begin);
    unpack_words<std::uint32_t>(panel + words_at(g), rows, bytes, layout.in, kInt8Flip, to + begin);
    for (std::int64_t o = 0; o < rows; ++o)
      scales[o * layout.groups() + g] = load<std::uint16_t>(panel + scales_at(g) + o * 2);
  }
}

}  // namespace

std::int64_t PackedLayout::panels() const {
  return (out + kPanelOuts - 1) / kPanelOuts;
}

std::int64_t PackedLayout::groups() const {
  return int8_groups(in);
}

std::int64_t PackedLayout::matrix_bytes() const {
  return panels() * panel_bytes();
}

std::int64_t PackedLayout::panel_bytes() const {
  switch (dtype) {
    case DType::float32:
      return in * kPanelOuts * 4;
    case DType::float16:
      return whole_lines(in * kPanelOuts * 2);
    case DType::bfloat16:
      return (in + 1) / 2 * kPanelOuts * 4;
    case DType::int8:
      break;
    case DType::float8_e4m3:
      throw_failure("float8 matrices have no panels");
  }
  return groups() / 2 * kGroupPair + groups() % 2 * (kScaleLine + kGroupWords);
}

void pack_panel(const PackedLayout& layout, const std::byte* from, const std::uint16_t* scales,
                std::int64_t rows, std::byte* panel) {
  const std::int64_t row_bytes = layout.in * static_cast<std::int64_t>(size_of(layout.dtype));
  if (layout.dtype == DType::int8) return pack_int8(layout, from, scales, rows, panel);
  if (layout.dtype == DType::float16) return pack_words_of_16(from, rows, row_bytes, panel);
  pack_words_of_32(from, rows, row_bytes, panel);
}

PanelColumn panel_column(const PackedLayout& layout, std::int64_t column) {
  switch (layout.dtype) {
    case DType::float32:
      return {column, column * kPanelOuts * 4};
    case DType::float16:
    case DType::bfloat16:
      return {column / 2 * 2, column / 2 * kPanelOuts * 4};
    case DType::int8:
      break;
    case DType::float8_e4m3:
      throw_failure("float8 matrices have no panels");
  }
  const std::int64_t pair = column / (2 * kInt8Group);
  return {pair * 2 * kInt8Group, pair * kGroupPair};
}

void unpack_panel(const PackedLayout& layout, const std::byte* panel, std::int64_t rows, std::byte* to,
                  std::uint16_t* scales) {
  const std::int64_t row_bytes = layout.in * static_cast<std::int64_t>(size_of(layout.dtype));
  if (layout.dtype == DType::int8) return unpack_int8(layout, panel, rows, to, scales);
  if (layout.dtype == DType::float16)
    return unpack_words<std::uint16_t>(panel, rows, row_bytes, row_bytes, 0, to);
  unpack_words<std::uint32_t>(panel, rows, row_bytes, row_bytes, 0, to);
}

void unpack_row(const PackedLayout& layout, const std::byte* matrix, std::int64_t out, float* to) {
  PTRT_CHECK(size_of(layout.dtype) > 1);
  const std::byte* panel = matrix + out / kPanelOuts * layout.panel_bytes();
  const std::int64_t lane = out % kPanelOuts;
  for (std::int64_t i = 0; i < layout.in; ++i) {
    switch (layout.dtype) {
      case DType::float32:
        to[i] = load<float>(panel + (i * kPanelOuts + lane) * 4);
        break;
      case DType::float16:
        to[i] = from_float16(load<std::uint16_t>(panel + (i * kPanelOuts + lane) * 2));
        break;
      case DType::bfloat16:
        to[i] = from_bfloat16(load<std::uint16_t>(panel + ((i / 2 * kPanelOuts + lane) * 2 + i % 2) * 2));
        break;
      case DType::int8:
      case DType::float8_e4m3:
        break;
    }
  }
}

}  // namespace ptrt
#endif  // HWY_ONCE
