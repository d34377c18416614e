// The one layout of matrices on the CPU, made at load; it serves one row and many.
//
// A matrix [out, in] is a sequence of panels of kPanelOuts outs, each panel 64-byte aligned and of the same
// size; outs beyond `out` and elements beyond `in` are zero. A panel holds words, [words][kPanelOuts], so
// that a vector's lane is an out and every sum is one chain over `in` in ascending order:
//   float32   a word is one element
//   float16   a word is one element (16 bits)
//   bfloat16  a word is two neighbouring elements of a row, 32 bits
//   int8      a word is four neighbouring elements of a row, each q + 128 as an unsigned byte; eight words
//             make a group. Groups come in pairs: one line with the scales of both, float16 [2][kPanelOuts],
//             then their words, so that scales and words are one stream; a last group without a partner
//             has half of its line unused
// A stack of expert matrices is such matrices one after another.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace ptrt {

inline constexpr std::int64_t kPanelOuts = 16;
inline constexpr int kInt8Offset = 128;
// Of an int8 panel, in bytes: the line of scales of a pair, one group's scales and words, a whole
// pair.
inline constexpr std::int64_t kScaleLine = 64, kGroupScales = kPanelOuts * 2,
                              kGroupWords = kInt8Group * kPanelOuts,
                              kGroupPair = kScaleLine + 2 * kGroupWords;

struct PackedLayout {
  DType dtype = DType::float32;
  std::int64_t out = 0, in = 0;

  std::int64_t panels() const;
  std::int64_t groups() const;  // of a row; int8 alone
  std::int64_t panel_bytes() const;
  std::int64_t matrix_bytes() const;
};

inline PackedLayout packed_layout(const Weight& w) {
  return {w.dtype, w.out, w.in};
}

// The version of the layout above, as model files name it; panels with another name are laid out
// otherwise.
inline constexpr const char* kRowLayoutName = "rows";
inline constexpr const char* kPanelLayoutName = "panels16.v1";

// Writes one panel from its outs' rows, `rows` <= kPanelOuts of them, row-major in the layout's
// type (int8: q as stored). `scales` [rows][groups] is for int8 alone.
void pack_panel(const PackedLayout& layout, const std::byte* from, const std::uint16_t* scales,
                std::int64_t rows, std::byte* panel);

// Where the columns from some `column` on begin in a panel: at a whole word, or a whole pair of
// groups. From there on it is a panel of fewer columns.
struct PanelColumn {
  std::int64_t column = 0;  // the last one that is not after the one asked for and begins like that
  std::int64_t byte = 0;
};
PanelColumn panel_column(const PackedLayout& layout, std::int64_t column);

// The inverse of pack_panel(): `rows` rows of a panel, row-major. `scales` is for int8 alone.
void unpack_panel(const PackedLayout& layout, const std::byte* panel, std::int64_t rows, std::byte* to,
                  std::uint16_t* scales);

// to[i] = element i of row `out` of a packed matrix of a floating type, widened to float32.
void unpack_row(const PackedLayout& layout, const std::byte* matrix, std::int64_t out, float* to);

}  // namespace ptrt
