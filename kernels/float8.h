// The float8 weight type: e4m3 without infinities ("e4m3fn" of the OCP 8-bit formats), with one float32 scale a
// row. An element is the value of its code · the scale of its row.
//
// A code is a sign bit, four bits of exponent (bias 7) and three of fraction. Exponent 0 has zeros and subnormals,
// the multiples of 2^-9. 0x7F and 0xFF alone are NaN. The largest value is 448.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/tensor.h"

namespace ptrt {

inline constexpr float kLargestFloat8 = 448;
// A scale is finite, not negative (nor -0) and at most this, so that every element is finite in float32.
inline constexpr float kLargestFloat8Scale = 0x1p119f;
inline constexpr float kLargestFloat8Weight = kLargestFloat8 * kLargestFloat8Scale;
// The smallest power of two whose product with every code but zero is a normal number.
inline constexpr float kSmallestFloat8Power = 0x1p-117f;

constexpr bool is_float8_nan(std::uint8_t code) {
  return (code & 0x7F) == 0x7F;
}

inline float from_float8(std::uint8_t code) {
  // Exponent and fraction shifted into place; the product with 2^120 corrects the bias, exactly, subnormals
  // included.
  const std::uint32_t magnitude = (std::uint32_t{code} & 0x7Fu) << 20;
  const std::uint32_t special = is_float8_nan(code) ? 0x7FC00000u : 0;
  const auto scaled = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p120f);
  return std::bit_cast<float>(scaled | special | (std::uint32_t{code} & 0x80u) << 24);
}

// The nearest code, of two as near the even one; ±448 beyond that, infinities included. The sign is kept, of zeros
// too. NaN stays NaN.
inline std::uint8_t to_float8(float value) {
  const std::uint32_t sign = std::bit_cast<std::uint32_t>(value) >> 24 & 0x80u;
  if (std::isnan(value)) return static_cast<std::uint8_t>(sign | 0x7F);
  const float magnitude = std::min(std::abs(value), kLargestFloat8);
  if (magnitude < 0x1p-6f) {  // subnormal: adding 2^14 leaves the rounded multiple of 2^-9 in the fraction
    const auto shifted = std::bit_cast<std::uint32_t>(magnitude + 0x1p14f);
    return static_cast<std::uint8_t>(sign | (shifted - 0x46800000u));
  }
  const auto bits = std::bit_cast<std::uint32_t>(magnitude);
  const std::uint32_t rounded = bits + 0x7FFFF + (bits >> 20 & 1);
  return static_cast<std::uint8_t>(sign | ((rounded - (120u << 23)) >> 20));
}

// As bits, numbers that are not negative are in ascending order; then infinity, NaNs and all negative ones follow.
constexpr bool is_float8_scale(float scale) {
  return std::bit_cast<std::uint32_t>(scale) <= std::bit_cast<std::uint32_t>(kLargestFloat8Scale);
}

// Of a scale: whether bfloat16 holds every element of its row exactly.
constexpr bool is_exact_in_bfloat16(float scale) {
  const bool power_of_two = (std::bit_cast<std::uint32_t>(scale) & 0x007FFFFFu) == 0;
  return scale == 0 || (power_of_two && scale >= kSmallestFloat8Power && scale <= kLargestFloat8Scale);
}

// The narrowest of bfloat16 and float32 that holds the elements of all rows with these scales, in float32 rounded
// where a scale is no power of two.
DType widened_float8_type(std::span<const float> scales);

// Converts one row. The scale is 1 where all elements are zero, else the smallest power of two from
// kSmallestFloat8Power on with max|w| / scale <= 448; a code is to_float8(w / scale). `codes` has the row's size.
// Returns the index of the first element that float8 cannot hold (not finite, or beyond ±kLargestFloat8Weight), or
// the row's size. Where there is such an element, `codes` and `scale` are undefined.
[[nodiscard]] std::size_t quantize_float8_row(std::span<const float> row, std::span<std::uint8_t> codes,
                                              float& scale);

}  // namespace ptrt
