#include "kernels/cuda/matmul/gemm_lt.h"

#include <cstdint>
#include <optional>

namespace ptrt::cuda {
namespace {

// The stride between the tracks' weights in elements, if it is uniform and cuBLASLt supports it.
std::optional<std::int64_t> uniform_stride(const TrackWeights& weights) {
  if (weights.size() == 1) return 0;
  const auto address = [&](std::size_t t) { return reinterpret_cast<std::intptr_t>(weights[t].data); };
  const std::intptr_t bytes = address(1) - address(0);
  for (std::size_t t = 1; t < weights.size(); ++t)
    if (address(t) - address(t - 1) != bytes) return std::nullopt;
  const auto element = static_cast<std::intptr_t>(size_of(weights[0].dtype));
  if (bytes % (8 * element) != 0) return std::nullopt;
  return bytes / element;
}

// The strides, in elements, that make one batch of two GEMMs with equal sizes and the same x.
struct PairStrides {
  std::int64_t w = 0, y = 0;
};
std::optional<PairStrides> pair_strides(const LinearJob& a, const LinearJob& b) {
  if (a.y.tracks != 1 || a.x.data != b.x.data || a.y.dtype != b.y.dtype || a.y.width != b.y.width)
    return std::nullopt;
  const auto between = [](const void* from, const void* to) {
    return reinterpret_cast<std::intptr_t>(to) - reinterpret_cast<std::intptr_t>(from);
  };
  const std::intptr_t w = between((*a.weights)[0].data, (*b.weights)[0].data);
  const std::intptr_t y = between(a.y.data, b.y.data);
  const auto w_size = static_cast<std::intptr_t>(size_of((*a.weights)[0].dtype));
  const auto y_size = static_cast<std::intptr_t>(size_of(a.y.dtype));
  if (w <= 0 || y <= 0 || w % (8 * w_size) != 0 || y % (8 * y_size) != 0) return std::nullopt;
  return PairStrides{w / w_size, y / y_size};
}

}  // namespace

LtProblem describe_gemm(const LinearJob& job) {
  LtProblem problem;
  problem.type = job.x.dtype;
  problem.y_type = job.y.dtype;
  problem.rows = job.y.rows;
  problem.out = job.y.width;
  problem.in = job.x.width;
  problem.x_stride = job.x.tracks == 1 ? 0 : job.x.track_stride;
  problem.y_stride = job.y.track_stride;
  problem.y_row = job.y.width;
  problem.x = job.x.data;
  problem.y = job.y.data;
  problem.w = (*job.weights)[0].data;
  return problem;
}

bool gemm_lt_pair(const LinearJob& first, const LinearJob& second, CublasLt& lt, cudaStream_t stream) {
  const auto strides = pair_strides(first, second);
  if (!strides) return false;
  LtProblem problem = describe_gemm(first);
  problem.batch = 2;
  problem.x_stride = 0;
  problem.w_stride = strides->w;
  problem.y_stride = strides->y;
  lt.run(problem, stream);
  return true;
}

void gemm_lt(const LinearJob& job, CublasLt& lt, cudaStream_t stream) {
  const TrackWeights& weights = *job.weights;
  LtProblem problem = describe_gemm(job);
  if (const auto stride = uniform_stride(weights)) {
    problem.batch = job.y.tracks;
    problem.w_stride = *stride;
    return lt.run(problem, stream);
  }
  for (std::int64_t t = 0; t < job.y.tracks; ++t) {
    problem.w = weights[static_cast<std::size_t>(t)].data;
    problem.x = static_cast<const std::uint16_t*>(job.x.data) + t * problem.x_stride;
    problem.y = static_cast<std::byte*>(job.y.data) +
                t * problem.y_stride * static_cast<std::int64_t>(size_of(job.y.dtype));
    lt.run(problem, stream);
  }
}

}  // namespace ptrt::cuda
