#include "kernels/cpu/matmul/activations.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul/activations.cpp"
#include "hwy/foreach_target.h"
// foreach_target comes first
#include "kernels/cpu/simd/simd-inl.h"
#include "kernels/cpu/weights/packed.h"

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace {

using IntTag = hn::Rebind<std::int32_t, FloatTag>;
constexpr IntTag kInts{};

// body(vector, index, n) over n elements; the last vector may hold fewer than kLanes of them and
// zeros.
template <class Body>
HWY_INLINE void for_vectors(const float* x, std::int64_t n, const Body& body) {
  const std::int64_t whole = whole_vectors(n);
  for (std::int64_t i = 0; i < whole; i += kLanes) body(hn::LoadU(kFloats, x + i), i, kLanes);
  if (whole < n) body(load_part(x + whole, n - whole), whole, n - whole);
}

void write_rounded(const float* x, std::int64_t in, std::byte* record) {
  auto* to = reinterpret_cast<float*>(record);
  for_vectors(x, in, [&](FloatVec v, std::int64_t i, std::int64_t n) HWY_ATTR {
    const FloatVec rounded = round_to_bfloat16(v);
    if (n == kLanes) return hn::StoreU(rounded, kFloats, to + i);
    store_part(rounded, to + i, n);
  });
}

// Whole vectors are stored, so what a row lacks in its last one becomes zero; records are long
// enough.
void write_bfloat16(const float* x, std::int64_t in, std::byte* record) {
  auto* to = reinterpret_cast<std::uint16_t*>(record);
  const hn::Rebind<std::uint16_t, FloatTag> halves;
  for_vectors(x, in, [&](FloatVec v, std::int64_t i, std::int64_t) HWY_ATTR {
    const auto words = hn::BitCast(kInts, hn::ShiftRight<16>(rounded_words(v)));
    hn::StoreU(hn::DemoteTo(halves, words), halves, to + i);
  });
}

// Of a group that has a NaN or an infinity, the scale is NaN, and so is every sum with it; its
// elements are then of no use.
struct Group {
  float scale, inverse;
};

HWY_INLINE Group measure_group(const float* x, std::int64_t n) {
  // Magnitudes compare like the integers of their bits, and NaNs and infinities are the largest.
  auto largest = hn::Zero(kInts);
  for_vectors(x, n, [&](FloatVec v, std::int64_t, std::int64_t) HWY_ATTR {
    largest = hn::Max(largest, hn::BitCast(kInts, hn::Abs(v)));
  });
  const auto max = std::bit_cast<float>(hn::GetLane(hn::MaxOfLanes(kInts, largest)));
  if (!(max <= std::numeric_limits<float>::max())) return {std::numeric_limits<float>::quiet_NaN(), 0};
  if (!(max > kSmallestGroup)) return {0, 0};
  return {max / 127.0f, 127.0f / max};
}

// body(q as int32 lanes, index, n) over one group.
template <class Body>
HWY_INLINE void quantise_group(const float* x, std::int64_t n, const Group& group, const Body& body) {
  for_vectors(x, n, [&](FloatVec v, std::int64_t i, std::int64_t left) HWY_ATTR {
    body(hn::NearestInt(hn::Mul(v, hn::Set(kFloats, group.inverse))), i, left);
  });
}

void write_quantised(const float* x, std::int64_t in, std::byte* record) {
  auto* to = reinterpret_cast<float*>(record);
  auto* scales = reinterpret_cast<float*>(record + scales_at(RowFormat::quantised, in));
  for (std::int64_t begin = 0; begin < in; begin += kInt8Group) {
    const std::int64_t n = std::min(kInt8Group, in - begin);
    const Group group = measure_group(x + begin, n);
    *scales++ = group.scale;
    quantise_group(x + begin, n, group, [&](hn::Vec<IntTag> q, std::int64_t i, std::int64_t left) HWY_ATTR {
      const FloatVec v = hn::ConvertTo(kFloats, q);
      if (left == kLanes) return hn::StoreU(v, kFloats, to + begin + i);
      store_part(v, to + begin + i, left);
    });
  }
}

// One group of a record; n is a constant for whole groups, which unrolls the loops.
template <typename Element>
HWY_INLINE void write_group(const float* x, std::int64_t n, Element* to, float& scale, std::int32_t& offset) {
  const hn::Rebind<Element, FloatTag> elements;
  const Group group = measure_group(x, n);
  auto sum = hn::Zero(kInts);
  quantise_group(x, n, group, [&](hn::Vec<IntTag> q, std::int64_t i, std::int64_t) HWY_ATTR {
    sum = hn::Add(sum, q);
    hn::StoreU(hn::DemoteTo(elements, q), elements, to + i);  // the zeros after a last part stay in the group
  });
  if constexpr (sizeof(Element) == 2) {
    for (std::int64_t quad = 0; quad < kInt8Group; quad += 4) std::swap(to[quad + 1], to[quad + 2]);
  }
  scale = group.scale;
  offset = -kInt8Offset * hn::GetLane(hn::SumOfLanes(kInts, sum));
}

template <typename Element>
void write_integers(RowFormat format, const float* x, std::int64_t in, std::byte* record) {
  const std::int64_t whole = in / kInt8Group, left = in % kInt8Group;
  auto* to = reinterpret_cast<Element*>(record);
  auto* scales = reinterpret_cast<float*>(record + scales_at(format, in));
  auto* offsets = reinterpret_cast<std::int32_t*>(scales + whole + (left > 0 ? 1 : 0));
  for (std::int64_t g = 0; g < whole; ++g)
    write_group(x + g * kInt8Group, kInt8Group, to + g * kInt8Group, scales[g], offsets[g]);
  if (left == 0) return;
  const std::int64_t begin = whole * kInt8Group;
  std::fill(to + begin, to + begin + kInt8Group, Element{0});
  write_group(x + begin, left, to + begin, scales[whole], offsets[whole]);
}

void write_record_simd(RowFormat format, const float* x, std::int64_t in, std::byte* record) {
  switch (format) {
    case RowFormat::plain:
      return;
    case RowFormat::rounded:
      return write_rounded(x, in, record);
    case RowFormat::quantised:
      return write_quantised(x, in, record);
    case RowFormat::bfloat16:
      return write_bfloat16(x, in, record);
    case RowFormat::int8:
      return write_integers<std::int8_t>(format, x, in, record);
    case RowFormat::int16:
      return write_integers<std::int16_t>(format, x, in, record);
  }
}

}  // namespace
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/cpu/simd/dispatch.h"
namespace ptrt {
namespace {

PTRT_EXPORT(write_record_simd);

}  // namespace

std::int64_t record_bytes(RowFormat format, std::int64_t in) {
  constexpr std::int64_t kLine = 64;
  const std::int64_t groups = (in + kInt8Group - 1) / kInt8Group;
  std::int64_t bytes = in * 4;
  if (format == RowFormat::plain) return bytes;
  if (format == RowFormat::quantised) bytes += groups * 4;
  if (format == RowFormat::bfloat16) bytes = in * 2;
  if (format == RowFormat::int8 || format == RowFormat::int16) bytes = scales_at(format, in) + groups * 8;
  const std::int64_t whole = (bytes + kLine - 1) / kLine * kLine;
  // Rows a multiple of this apart would share the same few lines of the first-level cache.
  constexpr std::int64_t kSetsApart = 4096;
  return whole % kSetsApart == 0 ? whole + kLine : whole;
}

void write_record(RowFormat format, const float* x, std::int64_t in, std::byte* record) {
  PTRT_DISPATCH(write_record_simd)(format, x, in, record);
}

}  // namespace ptrt
#endif  // HWY_ONCE
