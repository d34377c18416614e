// The int8 weight type: symmetric, a row's elements in groups of kInt8Group with one float16 scale
// a group.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/tensor.h"

namespace ptrt {

constexpr std::int64_t int8_groups(std::int64_t elements) {
  return (elements + kInt8Group - 1) / kInt8Group;
}

// The largest magnitude that int8 holds: its group's scale, rounded, is the largest finite float16.
inline constexpr float kLargestInt8Weight = 127 * 65504.0f;

// As bits, a scale that is finite and not negative is any float16 below this one.
inline constexpr std::uint16_t kFirstBadScale = 0x7C00;

// Quantises one row: scale = max|w| / 127 of the group, rounded to float16; q = w / scale, rounded
// to the nearest integer (ties to even) and clamped to ±127. A group of zeros, or of values too
// small for a scale, gets scale 0 and q = 0. `q` has the row's size, `scales` int8_groups() of it.
// Returns the index of the first element that int8 cannot hold (not finite, or beyond
// ±kLargestInt8Weight), or the row's size. Where there is such an element, `q` and `scales` are
// undefined.
[[nodiscard]] std::size_t quantize_int8_row(std::span<const float> row, std::span<std::int8_t> q,
                                            std::span<std::uint16_t> scales);

}  // namespace ptrt
