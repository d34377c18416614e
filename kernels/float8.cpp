#include "kernels/float8.h"

namespace ptrt {
namespace {

// The exponent: that of the smallest power of two that is not below max|w| / 448. 448 is 1.75 · 2^8.
float scale_of(float largest) {
  if (largest == 0) return 1;
  int exponent = 0;
  const float fraction = std::frexp(largest, &exponent);  // in [0.5, 1)
  const int power = exponent - 9 + (fraction > 0.875f ? 1 : 0);
  return std::max(std::ldexp(1.0f, power), kSmallestFloat8Power);
}

}  // namespace

DType widened_float8_type(std::span<const float> scales) {
  return std::ranges::all_of(scales, is_exact_in_bfloat16) ? DType::bfloat16 : DType::float32;
}

std::size_t quantize_float8_row(std::span<const float> row, std::span<std::uint8_t> codes, float& scale) {
  float largest = 0;
  for (std::size_t i = 0; i < row.size(); ++i) {
    const float magnitude = std::abs(row[i]);
    if (!(magnitude <= kLargestFloat8Weight)) return i;
    largest = std::max(largest, magnitude);
  }
  scale = scale_of(largest);
  const float inverse = 1 / scale;  // both are powers of two
  for (std::size_t i = 0; i < row.size(); ++i) codes[i] = to_float8(row[i] * inverse);
  return row.size();
}

}  // namespace ptrt
