// Conversions between float32 and the 16-bit types, one element at a time: for loading, for the
// reference backend and for tools. Rounding is to nearest, ties to even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace ptrt {

inline float from_bfloat16(std::uint16_t bits) {
  return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

inline std::uint16_t to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // stays a NaN, made quiet
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float from_float16(std::uint16_t bits) {
  // Exponent and mantissa shifted into place; the product with 2^112 corrects the bias, exactly,
  // subnormals included.
  const std::uint32_t magnitude = std::uint32_t{bits} << 13 & 0x0FFFE000u;
  const std::uint32_t special = (bits & 0x7C00) == 0x7C00 ? 0x7F800000u : 0;  // infinities and NaNs
  const auto scaled = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  return std::bit_cast<float>(scaled | special | (std::uint32_t{bits} & 0x8000u) << 16);
}

inline std::uint16_t to_float16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<std::uint16_t>(sign | 0x7E00);
  if (magnitude >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00);  // rounds to 2^16 or more
  if (magnitude <
      0x38800000u) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the mantissa
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3F000000u));
  }
  const std::uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
  return static_cast<std::uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

}  // namespace ptrt
