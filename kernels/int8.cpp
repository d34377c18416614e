#include "kernels/int8.h"

#include <algorithm>
#include <cmath>

#include "kernels/scalar_types.h"

namespace ptrt {
namespace {

std::int8_t quantize(float value, float scale) {
  const float q = value / scale;
  if (q >= 127.0f) return 127;
  return q > -127.0f ? static_cast<std::int8_t>(std::nearbyint(q)) : std::int8_t{-127};
}

}  // namespace

std::size_t quantize_int8_row(std::span<const float> row, std::span<std::int8_t> q,
                              std::span<std::uint16_t> scales) {
  constexpr auto kGroup = static_cast<std::size_t>(kInt8Group);
  for (std::size_t begin = 0; begin < row.size(); begin += kGroup) {
    const std::size_t end = std::min(begin + kGroup, row.size());
    float largest = 0;
    for (std::size_t i = begin; i < end; ++i) {
      if (!(std::abs(row[i]) <= kLargestInt8Weight)) return i;
      largest = std::max(largest, std::abs(row[i]));
    }
    const std::uint16_t bits = to_float16(largest / 127.0f);
    const float scale = from_float16(bits);
    scales[begin / kGroup] = bits;
    for (std::size_t i = begin; i < end; ++i) q[i] = scale > 0 ? quantize(row[i], scale) : std::int8_t{0};
  }
  return row.size();
}

}  // namespace ptrt
