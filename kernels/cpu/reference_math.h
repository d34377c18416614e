// What the files of the reference backend share.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/base/scalar_types.h"
#include "kernels/cpu/reference_backend.h"
#include "kernels/jobs.h"

namespace ptrt {

inline double rounded_to_bfloat16(double value) {
  return from_bfloat16(to_bfloat16(static_cast<float>(value)));
}

// RMSNorm of a row of n elements; out may be x.
inline void norm_row(const float* x, const Weight& w, const NormRule& rule, std::int64_t n, float* out) {
  double squares = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double z = rule.pre_scale ? double{x[i]} * weight_element(w, i) : x[i];
    squares += z * z;
  }
  const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + rule.eps);
  for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(x[i] * scale * weight_element(w, i));
}

}  // namespace ptrt
