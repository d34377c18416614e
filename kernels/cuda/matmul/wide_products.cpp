#include "kernels/cuda/matmul/wide_products.h"

#include <cstdint>
#include <optional>

namespace ptrt::cuda {
namespace {

// The distance from one track's weight to the next's in elements, where it is the same for all and cuBLASLt
// takes it.
std::optional<std::int64_t> even_stride(const TrackWeights& weights) {
  if (weights.size() == 1) return 0;
  const auto address = [&](std::size_t t) { return reinterpret_cast<std::intptr_t>(weights[t].data); };
  const std::intptr_t bytes = address(1) - address(0);
  for (std::size_t t = 1; t < weights.size(); ++t)
    if (address(t) - address(t - 1) != bytes) return std::nullopt;
  const auto element = static_cast<std::intptr_t>(size_of(weights[0].dtype));
  if (bytes % (8 * element) != 0) return std::nullopt;
  return bytes / element;
}

// Of two products of equal sizes and one x, in elements: what makes them one batch for cuBLASLt.
struct PairDistance {
  std::int64_t w = 0, y = 0;
};
std::optional<PairDistance> pair_distance(const LinearJob& a, const LinearJob& b) {
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
  return PairDistance{w / w_size, y / y_size};
}

// All but the weights' distance and the batch.
LtProduct describe_product(const LinearJob& job) {
  LtProduct product;
  product.type = job.x.dtype;
  product.y_type = job.y.dtype;
  product.rows = job.y.rows;
  product.out = job.y.width;
  product.in = job.x.width;
  product.x_stride = job.x.tracks == 1 ? 0 : job.x.track_stride;
  product.y_stride = job.y.track_stride;
  product.x = job.x.data;
  product.y = job.y.data;
  product.w = (*job.weights)[0].data;
  return product;
}

}  // namespace

bool wide_pair(const LinearJob& first, const LinearJob& second, LtMatmul& lt, cudaStream_t stream) {
  const auto distance = pair_distance(first, second);
  if (!distance) return false;
  LtProduct product = describe_product(first);
  product.batch = 2;
  product.x_stride = 0;
  product.w_stride = distance->w;
  product.y_stride = distance->y;
  lt.run(product, stream);
  return true;
}

void wide_product(const LinearJob& job, LtMatmul& lt, cudaStream_t stream) {
  const TrackWeights& weights = *job.weights;
  LtProduct product = describe_product(job);
  if (const auto stride = even_stride(weights)) {
    product.batch = job.y.tracks;
    product.w_stride = *stride;
    return lt.run(product, stream);
  }
  for (std::int64_t t = 0; t < job.y.tracks; ++t) {
    product.w = weights[static_cast<std::size_t>(t)].data;
    product.x = static_cast<const std::uint16_t*>(job.x.data) + t * product.x_stride;
    product.y = static_cast<std::byte*>(job.y.data) +
                t * product.y_stride * static_cast<std::int64_t>(size_of(job.y.dtype));
    lt.run(product, stream);
  }
}

}  // namespace ptrt::cuda
