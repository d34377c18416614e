// The int8 weight type: symmetric, a row's elements in groups of kInt8Group with one float16 scale a group.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor.h"

namespace ptrt {

constexpr std::int64_t int8_groups(std::int64_t elements) {
  return (elements + kInt8Group - 1) / kInt8Group;
}

// Quantises one row: scale = max|w| / 127 of the group, rounded to float16; q = w / scale, rounded to the
// nearest integer (ties to even) and clamped to ±127. A group of zeros, or of values too small for a scale,
// gets scale 0 and q = 0. Expects finite elements below 127 · 65504. `q` has the row's size, `scales`
// int8_groups() of it.
void quantize_int8_row(std::span<const float> row, std::span<std::int8_t> q, std::span<std::uint16_t> scales);

}  // namespace ptrt
