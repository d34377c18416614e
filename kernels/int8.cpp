#include "kernels/int8.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/int8.cpp"
#include "hwy/foreach_target.h"
// foreach_target comes first
#include "kernels/base/scalar_types.h"
#include "kernels/cpu/simd/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace {

using IntTag = hn::Rebind<std::int32_t, FloatTag>;
constexpr IntTag kInts{};

// Magnitudes compare like the integers of their bits, and NaNs and infinities are then the largest.
HWY_INLINE hn::Vec<IntTag> magnitude_bits(FloatVec v) {
  return hn::And(hn::BitCast(kInts, v), hn::Set(kInts, 0x7FFFFFFF));
}

HWY_INLINE hn::Vec<IntTag> quantized(FloatVec v, FloatVec scale) {
  const FloatVec limit = hn::Set(kFloats, 127.0f);
  return hn::NearestInt(hn::Min(hn::Max(hn::Div(v, scale), hn::Neg(limit)), limit));
}

// One group of n elements; false where one of them is too large or not finite.
HWY_INLINE bool quantize_group(const float* x, std::int64_t n, std::int8_t* q, std::uint16_t& scale_bits) {
  const std::int64_t whole = whole_vectors(n);
  auto largest_bits = hn::Zero(kInts);
  for (std::int64_t i = 0; i < whole; i += kLanes)
    largest_bits = hn::Max(largest_bits, magnitude_bits(hn::LoadU(kFloats, x + i)));
  if (whole < n) largest_bits = hn::Max(largest_bits, magnitude_bits(load_part(x + whole, n - whole)));
  const std::int32_t bits = hn::GetLane(hn::MaxOfLanes(kInts, largest_bits));
  if (bits > std::bit_cast<std::int32_t>(kLargestInt8Weight)) return false;

  scale_bits = to_float16(std::bit_cast<float>(bits) / 127.0f);
  if (scale_bits == 0) {
    std::fill_n(q, n, std::int8_t{0});
    return true;
  }
  const FloatVec scale = hn::Set(kFloats, from_float16(scale_bits));
  const hn::Rebind<std::int8_t, FloatTag> bytes;
  for (std::int64_t i = 0; i < whole; i += kLanes)
    hn::StoreU(hn::DemoteTo(bytes, quantized(hn::LoadU(kFloats, x + i), scale)), bytes, q + i);
  if (whole < n) {
    HWY_ALIGN std::int8_t last[kLanes];
    hn::Store(hn::DemoteTo(bytes, quantized(load_part(x + whole, n - whole), scale)), bytes, last);
    std::copy_n(last, n - whole, q + whole);
  }
  return true;
}

// The number of elements in the groups before the first that cannot be quantised.
std::int64_t quantize_row_simd(const float* x, std::int64_t n, std::int8_t* q, std::uint16_t* scales) {
  for (std::int64_t begin = 0; begin < n; begin += kInt8Group)
    if (!quantize_group(x + begin, std::min(kInt8Group, n - begin), q + begin, scales[begin / kInt8Group]))
      return begin;
  return n;
}

}  // namespace
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/cpu/simd/dispatch.h"
namespace ptrt {
namespace {

PTRT_EXPORT(quantize_row_simd);

}  // namespace

std::size_t quantize_int8_row(std::span<const float> row, std::span<std::int8_t> q,
                              std::span<std::uint16_t> scales) {
  auto at = static_cast<std::size_t>(PTRT_DISPATCH(quantize_row_simd)(
      row.data(), static_cast<std::int64_t>(row.size()), q.data(), scales.data()));
  while (at < row.size() && std::abs(row[at]) <= kLargestInt8Weight) ++at;
  return at;
}

}  // namespace ptrt
#endif  // HWY_ONCE
