#include "kernels/convert.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/convert.cpp"
#include "hwy/foreach_target.h"
// foreach_target comes first
#include "kernels/cpu/simd/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace {

template <typename T>
HWY_INLINE void widen_run(const std::byte* bytes, std::int64_t n, float* to) {
  const auto* from = reinterpret_cast<const T*>(bytes);
  const std::int64_t whole = whole_vectors(n);
  for (std::int64_t i = 0; i < whole; i += kLanes) hn::StoreU(load_wide(from + i), kFloats, to + i);
  if (whole < n) store_part(load_part(from + whole, n - whole), to + whole, n - whole);
}

void widen_simd(DType type, const std::byte* from, std::int64_t n, float* to) {
  switch (type) {
    case DType::float32:
      return widen_run<float>(from, n, to);
    case DType::float16:
      return widen_run<hwy::float16_t>(from, n, to);
    case DType::bfloat16:
      return widen_run<hwy::bfloat16_t>(from, n, to);
    case DType::int8:
    case DType::float8_e4m3:
      break;
  }
}

void round_simd(const float* from, std::int64_t n, std::uint16_t* to) {
  const hn::Rebind<std::uint16_t, FloatTag> halves;
  const hn::Rebind<std::int32_t, FloatTag> ints;
  const auto rounded = [&](FloatVec v) HWY_ATTR {
    return hn::DemoteTo(halves, hn::BitCast(ints, hn::ShiftRight<16>(rounded_words(v))));
  };
  const std::int64_t whole = whole_vectors(n);
  for (std::int64_t i = 0; i < whole; i += kLanes)
    hn::StoreU(rounded(hn::LoadU(kFloats, from + i)), halves, to + i);
  if (whole == n) return;
  HWY_ALIGN std::uint16_t last[kLanes];
  hn::Store(rounded(load_part(from + whole, n - whole)), halves, last);
  std::memcpy(to + whole, last, static_cast<std::size_t>(n - whole) * sizeof(last[0]));
}

}  // namespace
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/base/error.h"
#include "kernels/cpu/simd/dispatch.h"
#include "kernels/float8.h"
#include "kernels/int8.h"

namespace ptrt {
namespace {

PTRT_EXPORT(widen_simd);
PTRT_EXPORT(round_simd);

[[noreturn]] void refuse(const WeightSpec& spec, std::int64_t row, std::size_t column, float value,
                         const std::string& limit) {
  const std::string stack = spec.count > 1 ? fmt::format("{}, ", row / spec.out) : "";
  throw_bad_input("{}: element [{}{}, {}] is {}: {}", spec.name, stack, row % spec.out, column, value, limit);
}

}  // namespace

void widen(DType type, const std::byte* from, std::int64_t n, float* to) {
  PTRT_CHECK(size_of(type) > 1);
  PTRT_DISPATCH(widen_simd)(type, from, n, to);
}

void round_to_bfloat16(const float* from, std::int64_t n, std::uint16_t* to) {
  PTRT_DISPATCH(round_simd)(from, n, to);
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
    if (bad < width)
      refuse(spec, first + static_cast<std::int64_t>(r), bad, wide_[bad],
             fmt::format("int8 takes finite weights of at most {:.0f}", kLargestInt8Weight));
  }
}

void Float8Rows::quantize(const WeightSpec& spec, std::int64_t first, std::span<const std::byte> rows) {
  const auto width = static_cast<std::size_t>(spec.in);
  const std::size_t row_bytes = width * size_of(spec.dtype), count = rows.size() / row_bytes;
  wide_.resize(width);
  codes_.resize(count * width);
  scales_.resize(count);
  for (std::size_t r = 0; r < count; ++r) {
    widen(spec.dtype, rows.data() + r * row_bytes, spec.in, wide_.data());
    const std::size_t bad =
        quantize_float8_row(wide_, std::span(codes_).subspan(r * width, width), scales_[r]);
    if (bad < width)
      refuse(spec, first + static_cast<std::int64_t>(r), bad, wide_[bad],
             fmt::format("float8 takes finite weights of at most {:g}", kLargestFloat8Weight));
  }
}

}  // namespace ptrt
#endif  // HWY_ONCE
