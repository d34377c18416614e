#include "kernels/convert.h"

#include <cmath>
#include <cstring>

#include "kernels/error.h"
#include "kernels/int8.h"
#include "kernels/scalar_types.h"

namespace ptrt {
namespace {

template <typename T>
T element(const std::byte* from, std::int64_t i) {
  T value;
  std::memcpy(&value, from + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
  return value;
}

[[noreturn]] void refuse(const WeightSpec& spec, std::int64_t row, std::size_t column, float value) {
  const std::string stack = spec.count > 1 ? fmt::format("{}, ", row / spec.out) : "";
  throw_bad_input("{}: element [{}{}, {}] is {}: int8 takes finite weights of at most {:.0f}", spec.name,
                  stack, row % spec.out, column, value, kLargestInt8Weight);
}

}  // namespace

void widen(DType type, const std::byte* from, std::int64_t n, float* to) {
  PTRT_CHECK(type != DType::int8);
  for (std::int64_t i = 0; i < n; ++i) {
    if (type == DType::float32) to[i] = element<float>(from, i);
    if (type == DType::float16) to[i] = from_float16(element<std::uint16_t>(from, i));
    if (type == DType::bfloat16) to[i] = from_bfloat16(element<std::uint16_t>(from, i));
  }
}

void round_to_bfloat16(const float* from, std::int64_t n, std::uint16_t* to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = to_bfloat16(from[i]);
}

void Int8Rows::quantize(const WeightSpec& spec, std::int64_t first, std::span<const std::byte> rows) {
  const auto width = static_cast<std::size_t>(spec.in),
             groups = static_cast<std::size_t>(int8_groups(spec.in));
  const std::size_t row_bytes = width * size_of(spec.dtype), count = rows.size() / row_bytes;
  wide_.resize(width);
  q_.resize(count * width);
  scales_.resize(count * groups);
  for (std::size_t r = 0; r < count; ++r) {
    widen(spec.dtype, rows.data() + r * row_bytes, spec.in, wide_.data());
    const std::size_t bad = quantize_int8_row(wide_, std::span(q_).subspan(r * width, width),
                                              std::span(scales_).subspan(r * groups, groups));
    if (bad < width) refuse(spec, first + static_cast<std::int64_t>(r), bad, wide_[bad]);
  }
}

}  // namespace ptrt
