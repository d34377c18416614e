#include "kernels/cuda/matmul/widened_gemm.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/cuda/base/per_track.h"
#include "kernels/cuda/matmul/gemm_lt.h"
#include "kernels/cuda/matmul/widen.h"

namespace ptrt::cuda {
namespace {

constexpr std::int64_t kOutsMultiple = 8;

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Parts of equal size, as few as fit.
std::int64_t outs_of_part(std::int64_t out, std::int64_t row_bytes, std::int64_t bytes) {
  const std::int64_t most = bytes / row_bytes / kOutsMultiple * kOutsMultiple;
  PTRT_CHECK(most > 0);
  const std::int64_t parts = divide_up(out, most);
  return divide_up(divide_up(out, parts), kOutsMultiple) * kOutsMultiple;
}

}  // namespace

void WidenedGemm::reserve() {
  if (memory_ == nullptr) memory_ = allocate_device(static_cast<std::size_t>(bytes_), "widened weights");
}

void WidenedGemm::run(const LinearJob& job, CublasLt& lt, cudaStream_t stream) const {
  PTRT_CHECK(memory_ != nullptr);
  LtProblem problem = describe_gemm(job);
  problem.w = memory_.get();
  const std::int64_t tracks = job.y.tracks, out = job.y.width, in = job.x.width;
  const std::int64_t row_bytes = in * static_cast<std::int64_t>(size_of(job.x.dtype));
  const std::int64_t whole = std::clamp<std::int64_t>(bytes_ / (out * row_bytes), 1, kTracksPerLaunch);
  const std::int64_t step = outs_of_part(out, row_bytes, bytes_);
  for (std::int64_t t = 0; t < tracks; t += whole) {
    problem.batch = std::min(whole, tracks - t);
    const Tensor x = job.x.tracks == 1 ? job.x : job.x.track(t), y = job.y.track(t);
    problem.x = x.data;
    for (std::int64_t first = 0; first < out; first += step) {
      problem.out = std::min(step, out - first);
      problem.w_stride = problem.out * in;
      problem.y = static_cast<std::byte*>(y.data) + first * static_cast<std::int64_t>(size_of(y.dtype));
      widen_rows({job.weights, t, problem.batch, first, problem.out}, job.x.dtype, memory_.get(), stream);
      lt.run(problem, stream);
    }
  }
}

}  // namespace ptrt::cuda
