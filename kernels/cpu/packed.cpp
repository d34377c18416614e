#include "kernels/cpu/packed.h"

#include <algorithm>
#include <cstring>

#include "kernels/error.h"
#include "kernels/int8.h"
#include "kernels/scalar_types.h"

namespace ptrt {
namespace {

constexpr std::int64_t kLine = 64;

std::int64_t whole_lines(std::int64_t bytes) {
  return (bytes + kLine - 1) / kLine * kLine;
}

template <typename T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// Transposes rows of words, `bytes` of each and `row_bytes` apart, into [words][kPanelOuts], `flip` applied
// to every word. The bytes of a last word that the row does not fill, and the rows that are not there, are as
// `flip` makes them of zero.
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

// Where a group's scales and words are in a panel.
std::int64_t scales_at(std::int64_t group) {
  return group / 2 * kGroupPair + group % 2 * kGroupScales;
}

std::int64_t words_at(std::int64_t group) {
  return group / 2 * kGroupPair + kScaleLine + group % 2 * kGroupWords;
}

void pack_int8(const PackedLayout& layout, const std::byte* from, const std::uint16_t* scales,
               std::int64_t rows, std::byte* panel) {
  constexpr std::uint32_t kFlip = 0x80808080u;  // q ^ 0x80 is q + 128 as an unsigned byte
  const std::int64_t groups = layout.groups();
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t begin = g * kInt8Group, bytes = std::min(kInt8Group, layout.in - begin);
    std::byte* words = panel + words_at(g);
    pack_words<std::uint32_t>(from + begin, rows, bytes, layout.in, kFlip, words);
    const std::int64_t packed = (bytes + 3) / 4 * 4 * kPanelOuts;
    std::memset(words + packed, kInt8Offset, static_cast<std::size_t>(kGroupWords - packed));
    for (std::int64_t o = 0; o < kPanelOuts; ++o) {
      const std::uint16_t scale = o < rows ? scales[o * groups + g] : 0;
      std::memcpy(panel + scales_at(g) + o * 2, &scale, sizeof(scale));
    }
  }
  if (groups % 2 != 0)
    std::memset(panel + scales_at(groups - 1) + kGroupScales, 0, static_cast<std::size_t>(kGroupScales));
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
  }
  return groups() / 2 * kGroupPair + groups() % 2 * (kScaleLine + kGroupWords);
}

void pack_panel(const PackedLayout& layout, const std::byte* from, const std::uint16_t* scales,
                std::int64_t rows, std::byte* panel) {
  const std::int64_t row_bytes = layout.in * static_cast<std::int64_t>(size_of(layout.dtype));
  if (layout.dtype == DType::int8) return pack_int8(layout, from, scales, rows, panel);
  if (layout.dtype == DType::float16)
    return pack_words<std::uint16_t>(from, rows, row_bytes, row_bytes, 0, panel);
  pack_words<std::uint32_t>(from, rows, row_bytes, row_bytes, 0, panel);
}

void unpack_row(const PackedLayout& layout, const std::byte* matrix, std::int64_t out, float* to) {
  PTRT_CHECK(layout.dtype != DType::int8);
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
        break;
    }
  }
}

}  // namespace ptrt
