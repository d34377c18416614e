// Shared by the vectorised kernels, compiled once per instruction set: loads that widen to float32,
// loads and stores of a part of a vector, and horizontal sums in one fixed order.
//
// In every kernel a sum over n elements runs in lanes: lane l adds the elements l, l + kLanes, l +
// 2·kLanes, … in ascending order (fused where the instruction set has it), elements past the end
// count as zero, and sum_lanes() folds the lanes. So the bits depend only on n and the instruction
// set.

#if defined(PTRT_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PTRT_KERNELS_CPU_SIMD_INL_H_
#undef PTRT_KERNELS_CPU_SIMD_INL_H_
#else
#define PTRT_KERNELS_CPU_SIMD_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

// Before a loop over an array of vectors: only fully unrolled does the array live in registers.
#ifndef PTRT_UNROLL
#define PTRT_UNROLL _Pragma("GCC unroll 16")
#endif

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using FloatVec = hn::Vec<FloatTag>;
using WordTag = hn::Rebind<std::uint32_t, FloatTag>;
using WordVec = hn::Vec<WordTag>;
using QuadTag = hn::FixedTag<float, 4>;
using QuadVec = hn::Vec<QuadTag>;
constexpr FloatTag kFloats{};
constexpr WordTag kWords{};
constexpr QuadTag kQuad{};
constexpr std::int64_t kLanes = static_cast<std::int64_t>(hn::MaxLanes(FloatTag()));
static_assert(kLanes >= 4, "instruction sets with fewer than four float lanes are not supported");

// The largest multiple of kLanes that is at most n.
constexpr std::int64_t whole_vectors(std::int64_t n) {
  return n - n % kLanes;
}

// ---- Loads that widen

HWY_INLINE FloatVec load_wide(const float* from) {
  return hn::LoadU(kFloats, from);
}

HWY_INLINE FloatVec load_wide(const hwy::bfloat16_t* from) {
  return hn::PromoteTo(kFloats, hn::LoadU(hn::Rebind<hwy::bfloat16_t, FloatTag>(), from));
}

HWY_INLINE FloatVec load_wide(const hwy::float16_t* from) {
#if HWY_ARCH_X86 && (HWY_TARGET >= HWY_SSE4 || defined(HWY_DISABLE_F16C))
  // No conversion instruction: shift exponent and mantissa into place and correct the bias by a
  // product with 2^112, which is exact for subnormals too; infinities and NaNs get their exponent
  // back.
  const hn::Rebind<std::uint32_t, FloatTag> words;
  const hn::Rebind<std::uint16_t, FloatTag> halves;
  const auto bits = hn::PromoteTo(words, hn::LoadU(halves, reinterpret_cast<const std::uint16_t*>(from)));
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(words, 0x8000u)));
  const auto magnitude = hn::ShiftLeft<13>(hn::And(bits, hn::Set(words, 0x7FFFu)));
  const auto scaled =
      hn::BitCast(words, hn::Mul(hn::BitCast(kFloats, magnitude), hn::Set(kFloats, 0x1p112f)));
  const hn::Rebind<std::int32_t, FloatTag> ints;  // magnitudes are below 2^31
  const auto special = hn::Gt(hn::BitCast(ints, magnitude), hn::Set(ints, (0x7C00 << 13) - 1));
  const auto exponent = hn::IfThenElseZero(hn::RebindMask(words, special), hn::Set(words, 0x7F800000u));
  return hn::BitCast(kFloats, hn::Or(hn::Or(scaled, sign), exponent));
#else
  return hn::PromoteTo(kFloats, hn::LoadU(hn::Rebind<hwy::float16_t, FloatTag>(), from));
#endif
}

// Words of two bfloat16 elements each.
HWY_INLINE WordVec load_words(const void* from) {
  return hn::LoadU(kWords, static_cast<const std::uint32_t*>(from));
}

// The first (kElement = 0) or second elements of words.
template <int kElement>
HWY_INLINE FloatVec widen_element(WordVec words) {
  if constexpr (kElement == 0) return hn::BitCast(kFloats, hn::ShiftLeft<16>(words));
  return hn::BitCast(kFloats, hn::And(words, hn::Set(kWords, 0xFFFF0000u)));
}

// The first n < kLanes elements, zeros after them. Reads nothing past them.
template <typename T>
HWY_INLINE FloatVec load_part(const T* from, std::int64_t n) {
  HWY_ALIGN T lanes[kLanes] = {};
  std::memcpy(static_cast<void*>(lanes), static_cast<const void*>(from),
              static_cast<std::size_t>(n) * sizeof(T));
  return load_wide(lanes);
}

HWY_INLINE void store_part(FloatVec v, float* to, std::int64_t n) {
  HWY_ALIGN float lanes[kLanes];
  hn::Store(v, kFloats, lanes);
  std::memcpy(to, lanes, static_cast<std::size_t>(n) * sizeof(float));
}

// ---- Rounding

// The elements rounded to bfloat16, in the upper halves of the lanes. NaNs stay NaNs.
HWY_INLINE hn::Vec<WordTag> rounded_words(FloatVec v) {
  const auto bits = hn::BitCast(kWords, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(kWords, 1));
  const auto up = hn::Add(bits, hn::Add(odd, hn::Set(kWords, 0x7FFF)));
  const auto quiet = hn::Or(bits, hn::Set(kWords, 0x400000));
  const auto result = hn::IfThenElse(hn::RebindMask(kWords, hn::IsNaN(v)), quiet, up);
  return hn::And(result, hn::Set(kWords, 0xFFFF0000u));
}

HWY_INLINE FloatVec round_to_bfloat16(FloatVec v) {
  return hn::BitCast(kFloats, rounded_words(v));
}

// ---- Horizontal sums

// Halves are added onto each other until four lanes are left.
template <class D, class V>
HWY_INLINE QuadVec fold(D /*tag*/, V v) {
  if constexpr (hn::MaxLanes(D()) > 4) {
    const hn::Half<D> half;
    return fold(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  } else {
    return v;
  }
}

// The sums of four vectors, each folded to lanes q and then (q0 + q2) + (q1 + q3).
HWY_INLINE QuadVec sum_lanes_of_four(FloatVec a, FloatVec b, FloatVec c, FloatVec d) {
  const QuadVec qa = fold(kFloats, a), qb = fold(kFloats, b), qc = fold(kFloats, c), qd = fold(kFloats, d);
  const QuadVec ab = hn::Add(hn::InterleaveLower(kQuad, qa, qb), hn::InterleaveUpper(kQuad, qa, qb));
  const QuadVec cd = hn::Add(hn::InterleaveLower(kQuad, qc, qd), hn::InterleaveUpper(kQuad, qc, qd));
  return hn::Add(hn::ConcatLowerLower(kQuad, cd, ab), hn::ConcatUpperUpper(kQuad, cd, ab));
}

// The same sum of one vector.
HWY_INLINE float sum_lanes(FloatVec v) {
  HWY_ALIGN float q[4];
  hn::Store(fold(kFloats, v), kQuad, q);
  return (q[0] + q[2]) + (q[1] + q[3]);
}

HWY_INLINE float max_lanes(FloatVec v) {
  return hn::GetLane(hn::MaxOfLanes(kFloats, v));
}

// e^x for x <= 0, one lane like another; 0 below about -104 (and for NaN).
HWY_INLINE FloatVec exp_nonpositive(FloatVec x) {
  return hn::Exp(kFloats, hn::Max(x, hn::Set(kFloats, -120.0f)));
}

}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
