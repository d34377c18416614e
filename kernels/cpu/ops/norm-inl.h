// RMSNorm of one row; shared by the norm op and the QK-norm. Per-target header, see simd-inl.h.

#if defined(PTRT_KERNELS_CPU_NORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PTRT_KERNELS_CPU_NORM_INL_H_
#undef PTRT_KERNELS_CPU_NORM_INL_H_
#else
#define PTRT_KERNELS_CPU_NORM_INL_H_
#endif

#include <cmath>

#include "kernels/cpu/simd/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {

// Σ x[i]², in two chains a lane (even and odd vectors) to hide the latency of the multiply-add.
HWY_INLINE float sum_of_squares(const float* x, std::int64_t n) {
  FloatVec even = hn::Zero(kFloats), odd = hn::Zero(kFloats);
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const FloatVec a = hn::LoadU(kFloats, x + i), b = hn::LoadU(kFloats, x + i + kLanes);
    even = hn::MulAdd(a, a, even);
    odd = hn::MulAdd(b, b, odd);
  }
  if (i + kLanes <= n) {
    const FloatVec a = hn::LoadU(kFloats, x + i);
    even = hn::MulAdd(a, a, even);
    i += kLanes;
  }
  if (i < n) {
    const FloatVec a = load_part(x + i, n - i);
    odd = hn::MulAdd(a, a, odd);
  }
  return sum_lanes(hn::Add(even, odd));
}

// out[i] = x[i] / sqrt(mean(x²) + eps) · w[i]; out may be x.
HWY_INLINE void rms_norm_row(const float* x, const float* w, float eps, std::int64_t n, float* out) {
  const float scale = 1.0f / std::sqrt(sum_of_squares(x, n) / static_cast<float>(n) + eps);
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
