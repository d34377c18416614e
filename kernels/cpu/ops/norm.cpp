#include "kernels/cpu/ops/norm.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ops/norm.cpp"
#include "hwy/foreach_target.h"
// foreach_target comes first
#include "kernels/cpu/ops/norm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace {

void rms_norm_rows(const TrackWeights& weights, NormRule rule, const Tensor& x, const Tensor& out,
                   std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t track = i / out.rows, row = i % out.rows;
    const auto* w = static_cast<const float*>(weights[static_cast<std::size_t>(track)].data);
    rms_norm_row(x.row(track, row), w, rule, x.width, out.row(track, row));
  }
}

}  // namespace
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/base/error.h"
#include "kernels/cpu/simd/dispatch.h"

namespace ptrt {
namespace {

PTRT_EXPORT(rms_norm_rows);

constexpr std::int64_t kElementsPerTask = 16 * 1024;

}  // namespace

void rms_norm(ThreadPool& pool, const TrackWeights& weights, NormRule rule, Tensor x, Tensor out) {
  PTRT_CHECK(static_cast<std::int64_t>(weights.size()) == out.tracks);
  PTRT_CHECK(x.tracks == out.tracks && x.rows == out.rows && x.width == out.width);
  for (const Weight& w : weights) PTRT_CHECK(w.dtype == DType::float32 && w.in == x.width);
  const std::int64_t rows = out.tracks * out.rows;
  const std::int64_t rows_per_task =
      std::max<std::int64_t>(1, kElementsPerTask / std::max<std::int64_t>(1, x.width));
  const auto run_rows = PTRT_DISPATCH(rms_norm_rows);
  pool.parallel_for((rows + rows_per_task - 1) / rows_per_task, [&](std::int64_t task, int) {
    const std::int64_t begin = task * rows_per_task;
    run_rows(weights, rule, x, out, begin, std::min(begin + rows_per_task, rows));
  });
}

}  // namespace ptrt
#endif  // HWY_ONCE
