// RoPE and attention of the reference backend.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/base/scalar_types.h"
#include "kernels/cpu/attention/kv_layout.h"
#include "kernels/cpu/reference_backend.h"
#include "kernels/cpu/reference_math.h"

namespace ptrt {
namespace {

float key_element(const KvPool& pool, std::int64_t track, std::int64_t layer, std::int64_t page,
                  std::int64_t head, std::int64_t place, std::int64_t j) {
  const std::int64_t at = key_index(pool, place, j);
  if (pool.dtype == DType::float32) return pool.keys<float>(track, layer, page, head)[at];
  return from_bfloat16(pool.keys<std::uint16_t>(track, layer, page, head)[at]);
}

float value_element(const KvPool& pool, std::int64_t track, std::int64_t layer, std::int64_t page,
                    std::int64_t head, std::int64_t place, std::int64_t j) {
  const std::int64_t at = value_index(pool, place, j);
  if (pool.dtype == DType::float32) return pool.values<float>(track, layer, page, head)[at];
  return from_bfloat16(pool.values<std::uint16_t>(track, layer, page, head)[at]);
}

// q times the scale of its product with k; what is rounded is the float32 product.
std::vector<double> scaled_query(const float* q, const AttentionShape& shape, bool rounds) {
  const double scale = shape.scale != 0 ? shape.scale : 1 / std::sqrt(static_cast<double>(shape.head_dim));
  std::vector<double> scaled(q, q + shape.head_dim);
  for (double& element : scaled) {
    element *= scale;
    if (rounds) element = rounded_to_bfloat16(element);
  }
  return scaled;
}

}  // namespace

void ReferenceBackend::rope_angles(std::span<const std::int32_t> positions, const RopeFrequencies& rope,
                                   Tensor cos_sin) {
  const std::int64_t half = cos_sin.width / 2;
  for (std::int64_t r = 0; r < cos_sin.rows; ++r)
    for (std::int64_t j = 0; j < half; ++j) {
      const double angle =
          positions[static_cast<std::size_t>(r)] * rope.frequencies[static_cast<std::size_t>(j)];
      cos_sin.row(0, r)[j] = static_cast<float>(rope.magnitude * std::cos(angle));
      cos_sin.row(0, r)[half + j] = static_cast<float>(rope.magnitude * std::sin(angle));
    }
}

void ReferenceBackend::rope_append(const AttentionShape& shape, const TrackWeights& q_norm,
                                   const TrackWeights& k_norm, Tensor cos_sin, Tensor q, Tensor k, Tensor v,
                                   const StepRows& rows, std::int64_t layer, const KvPool& pool) {
  const std::int64_t head_dim = shape.head_dim, half = head_dim / 2;
  const auto norm_head = [&](float* head, const TrackWeights& norm, std::int64_t t) {
    if (!norm.empty()) norm_row(head, norm[static_cast<std::size_t>(t)], shape.norm_eps, head_dim, head);
  };
  const auto encode = [&](float* head, const TrackWeights& norm, std::int64_t t, std::int64_t r) {
    if (!shape.norm_after_rope) norm_head(head, norm, t);
    for (std::int64_t j = 0; shape.rope && j < half; ++j) {
      const double cosine = cos_sin.row(0, r)[j], sine = cos_sin.row(0, r)[half + j];
      const double a = head[j], b = head[j + half];
      head[j] = static_cast<float>(a * cosine - b * sine);
      head[j + half] = static_cast<float>(b * cosine + a * sine);
    }
    if (shape.norm_after_rope) norm_head(head, norm, t);
  };
  for (std::int64_t t = 0; t < q.tracks; ++t)
    for (std::int64_t r = 0; r < q.rows; ++r) {
      const std::int64_t position = rows.positions[static_cast<std::size_t>(r)];
      const std::int64_t page = rows.page(r, position / kPageTokens), place = position % kPageTokens;
      for (std::int64_t h = 0; h < shape.heads; ++h) encode(q.row(t, r) + h * head_dim, q_norm, t, r);
      for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
        encode(k.row(t, r) + h * head_dim, k_norm, t, r);
        for (std::int64_t j = 0; j < head_dim; ++j) {
          const float key = k.row(t, r)[h * head_dim + j], value = v.row(t, r)[h * head_dim + j];
          const std::int64_t key_at = key_index(pool, place, j), value_at = value_index(pool, place, j);
          if (pool.dtype == DType::float32) {
            pool.keys<float>(t, layer, page, h)[key_at] = key;
            pool.values<float>(t, layer, page, h)[value_at] = value;
          } else {
            pool.keys<std::uint16_t>(t, layer, page, h)[key_at] = to_bfloat16(key);
            pool.values<std::uint16_t>(t, layer, page, h)[value_at] = to_bfloat16(value);
          }
        }
      }
    }
}

void ReferenceBackend::attention(const AttentionShape& shape, Tensor q, const StepRows& rows,
                                 std::int64_t layer, const KvPool& pool, Tensor out) {
  const std::int64_t head_dim = shape.head_dim;
  const bool rounds = options_.compute != Compute::float32 && pool.dtype == DType::bfloat16;
  for (std::int64_t t = 0; t < q.tracks; ++t)
    for (std::int64_t r = 0; r < q.rows; ++r)
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        const std::int64_t kv_head = h / (shape.heads / shape.kv_heads), offset = h * head_dim;
        const std::int64_t last = rows.positions[static_cast<std::size_t>(r)];
        const std::int64_t first = shape.window == 0 ? 0 : std::max<std::int64_t>(0, last - shape.window + 1);
        const std::vector<double> query = scaled_query(q.row(t, r) + offset, shape, rounds);
        std::vector<double> weights;
        for (std::int64_t p = first; p <= last; ++p) {
          const std::int64_t page = rows.page(r, p / kPageTokens);
          double score = 0;
          for (std::int64_t j = 0; j < head_dim; ++j)
            score += query[static_cast<std::size_t>(j)] *
                     key_element(pool, t, layer, page, kv_head, p % kPageTokens, j);
          weights.push_back(score);
        }
        const double max = *std::max_element(weights.begin(), weights.end());
        for (double& weight : weights) weight = std::exp(weight - max);
        const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
        std::vector<double> sum(static_cast<std::size_t>(head_dim));
        for (std::int64_t p = first; p <= last; ++p) {
          const std::int64_t page = rows.page(r, p / kPageTokens);
          const double exact = weights[static_cast<std::size_t>(p - first)];
          const double weight = rounds ? rounded_to_bfloat16(exact) : exact;
          for (std::size_t j = 0; j < sum.size(); ++j)
            sum[j] += weight * value_element(pool, t, layer, page, kv_head, p % kPageTokens,
                                             static_cast<std::int64_t>(j));
        }
        for (std::size_t j = 0; j < sum.size(); ++j)
          out.row(t, r)[offset + static_cast<std::int64_t>(j)] = static_cast<float>(sum[j] / total);
      }
}

}  // namespace ptrt
