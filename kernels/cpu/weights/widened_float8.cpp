#include "kernels/cpu/weights/widened_float8.h"

#include <cstring>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/convert.h"
#include "kernels/float8.h"

namespace ptrt {

WeightSpec widened(const WeightSpec& spec) {
  WeightSpec wide = spec;
  if (spec.dtype == DType::float8_e4m3) wide.dtype = spec.widened;
  return wide;
}

void WidenedFloat8::read(std::int64_t first, std::span<std::byte> rows) {
  const auto in = static_cast<std::size_t>(spec_.in), element = size_of(spec_.widened);
  const std::size_t count = rows.size() / (in * element);
  std::vector<std::byte> codes(count * in);
  std::vector<float> scales(count), wide(in);
  float8_.read(first, codes);
  float8_.read_scales(first, std::as_writable_bytes(std::span(scales)));
  for (std::size_t r = 0; r < count; ++r) {
    if (spec_.widened == DType::bfloat16 && !is_exact_in_bfloat16(scales[r]))
      throw_bad_input(
          "{}: row {}: expected a scale that is a power of two, as at first, found {}: the file was changed",
          spec_.name, first + static_cast<std::int64_t>(r), scales[r]);
    for (std::size_t i = 0; i < in; ++i)
      wide[i] = from_float8(static_cast<std::uint8_t>(codes[r * in + i])) * scales[r];
    std::byte* to = rows.data() + r * in * element;
    if (spec_.widened == DType::bfloat16)
      round_to_bfloat16(wide.data(), spec_.in, reinterpret_cast<std::uint16_t*>(to));
    else
      std::memcpy(to, wide.data(), in * element);
  }
}

void WidenedFloat8::read_scales(std::int64_t, std::span<std::byte>) {
  throw_failure("internal error: {}: a widened weight has no scales", spec_.name);
}

}  // namespace ptrt
