// RMSNorm of one row; shared by the norm op and the QK-norm. Per-target header, see simd-inl.h.

#if defined(PTRT_KERNELS_CPU_NORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PTRT_KERNELS_CPU_NORM_INL_H_
#undef PTRT_KERNELS_CPU_NORM_INL_H_
#else
#define PTRT_KERNELS_CPU_NORM_INL_H_
#endif

#include <cmath>

#include "kernels/cpu/simd/simd-inl.h"
#include "kernels/jobs.h"

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {

// Σ x[i]², with kWeighted Σ (x[i] · w[i])², in two chains a lane (even and odd vectors) to hide the
// latency of the multiply-add.
template <bool kWeighted>
HWY_INLINE float sum_of_squares(const float* x, const float* w, std::int64_t n) {
  const auto load = [&](std::int64_t i) HWY_ATTR {
    const FloatVec a = hn::LoadU(kFloats, x + i);
    return kWeighted ? hn::Mul(a, hn::LoadU(kFloats, w + i)) : a;
  };
  FloatVec even = hn::Zero(kFloats), odd = hn::Zero(kFloats);
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const FloatVec a = load(i), b = load(i + kLanes);
    even = hn::MulAdd(a, a, even);
    odd = hn::MulAdd(b, b, odd);
  }
  if (i + kLanes <= n) {
    const FloatVec a = load(i);
    even = hn::MulAdd(a, a, even);
    i += kLanes;
  }
  if (i < n) {
    FloatVec a = load_part(x + i, n - i);
    if (kWeighted) a = hn::Mul(a, load_part(w + i, n - i));
    odd = hn::MulAdd(a, a, odd);
  }
  return sum_lanes(hn::Add(even, odd));
}

// As `rule` says; out may be x.
HWY_INLINE void rms_norm_row(const float* x, const float* w, NormRule rule, std::int64_t n, float* out) {
  const float squares = rule.pre_scale ? sum_of_squares<true>(x, w, n) : sum_of_squares<false>(x, w, n);
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(n) + rule.eps);
  const FloatVec scales = hn::Set(kFloats, scale);
  const std::int64_t whole = whole_vectors(n);
  for (std::int64_t i = 0; i < whole; i += kLanes)
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(kFloats, x + i), scales), hn::LoadU(kFloats, w + i)), kFloats,
               out + i);
  for (std::int64_t i = whole; i < n; ++i) out[i] = x[i] * scale * w[i];
}

}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
