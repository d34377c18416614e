#include "kernels/cpu/ops/rope.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ops/rope.cpp"
#include "hwy/foreach_target.h"
// foreach_target comes first
#include "kernels/cpu/ops/norm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace {

// Rotates the pairs (v[j], v[j + half]). Not fused, so that a pair in the tail gets the same bits.
HWY_INLINE void rotate(float* v, const float* cos_sin, std::int64_t half) {
  const float *cosines = cos_sin, *sines = cos_sin + half;
  const std::int64_t whole = whole_vectors(half);
  for (std::int64_t j = 0; j < whole; j += kLanes) {
    const FloatVec a = hn::LoadU(kFloats, v + j), b = hn::LoadU(kFloats, v + half + j);
    const FloatVec c = hn::LoadU(kFloats, cosines + j), s = hn::LoadU(kFloats, sines + j);
    hn::StoreU(hn::Sub(hn::Mul(a, c), hn::Mul(b, s)), kFloats, v + j);
    hn::StoreU(hn::Add(hn::Mul(b, c), hn::Mul(a, s)), kFloats, v + half + j);
  }
  for (std::int64_t j = whole; j < half; ++j) {
    const float a = v[j], b = v[j + half];
    v[j] = a * cosines[j] - b * sines[j];
    v[j + half] = b * cosines[j] + a * sines[j];
  }
}

// QK-norm (norm may be null) and RoPE (cos_sin may be null) of the heads of one row.
void encode_heads(const AttentionShape& shape, float* heads, std::int64_t count, const float* norm,
                  const float* cos_sin) {
  const std::int64_t head_dim = shape.head_dim;
  const bool first = norm != nullptr && !shape.norm_after_rope, last = norm != nullptr && !first;
  for (std::int64_t h = 0; h < count; ++h) {
    float* head = heads + h * head_dim;
    if (first) rms_norm_row(head, norm, shape.norm_eps, head_dim, head);
    if (cos_sin != nullptr) rotate(head, cos_sin, head_dim / 2);
    if (last) rms_norm_row(head, norm, shape.norm_eps, head_dim, head);
  }
}

}  // namespace
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/base/error.h"
#include "kernels/base/scalar_types.h"
#include "kernels/cpu/simd/dispatch.h"

namespace ptrt {
namespace {

PTRT_EXPORT(encode_heads);

constexpr std::int64_t kElementsPerTask = 8 * 1024;

const float* norm_of(const TrackWeights& weights, std::int64_t track) {
  return weights.empty() ? nullptr : static_cast<const float*>(weights[static_cast<std::size_t>(track)].data);
}

// The key and value of one head to their place in a page, as kv_layout.h says.
void append_head(const float* k, const float* v, std::int64_t head_dim, std::int64_t place, float* keys,
                 float* values) {
  for (std::int64_t j = 0; j < head_dim; ++j) keys[j * kPageTokens + place] = k[j];
  std::copy(v, v + head_dim, values + place * head_dim);
}

// Element by element: another thread may write the other token of a pair.
void append_head(const float* k, const float* v, std::int64_t head_dim, std::int64_t place,
                 std::uint16_t* keys, std::uint16_t* values) {
  const std::int64_t whole = head_dim - head_dim % 2;
  std::uint16_t* key = keys + 2 * place;
  for (std::int64_t j = 0; j < whole; j += 2, key += 2 * kPageTokens) {
    key[0] = to_bfloat16(k[j]);
    key[1] = to_bfloat16(k[j + 1]);
  }
  if (whole < head_dim) keys[whole * kPageTokens + place] = to_bfloat16(k[whole]);
  std::uint16_t* value = values + place / 2 * 2 * head_dim + place % 2;
  for (std::int64_t j = 0; j < head_dim; ++j) value[2 * j] = to_bfloat16(v[j]);
}

template <typename T>
void append(const StepRows& rows, std::int64_t r, const float* k, const float* v, std::int64_t track,
            std::int64_t layer, const KvPool& kv) {
  const std::int64_t position = rows.positions[static_cast<std::size_t>(r)];
  const std::int64_t page = rows.page(r, position / kPageTokens);
  for (std::int64_t h = 0; h < kv.kv_heads; ++h, k += kv.head_dim, v += kv.head_dim)
    append_head(k, v, kv.head_dim, position % kPageTokens, kv.keys<T>(track, layer, page, h),
                kv.values<T>(track, layer, page, h));
}

void check_norm(const TrackWeights& weights, std::int64_t tracks, std::int64_t head_dim) {
  PTRT_CHECK(weights.empty() || static_cast<std::int64_t>(weights.size()) == tracks);
  for (const Weight& w : weights) PTRT_CHECK(w.dtype == DType::float32 && w.in == head_dim);
}

}  // namespace

void rope_angles(ThreadPool& pool, std::span<const std::int32_t> positions, const RopeFrequencies& rope,
                 Tensor cos_sin) {
  PTRT_CHECK(static_cast<std::int64_t>(positions.size()) == cos_sin.rows);
  const std::int64_t half = cos_sin.width / 2;
  PTRT_CHECK(static_cast<std::int64_t>(rope.frequencies.size()) == half);
  constexpr std::int64_t kRowsPerTask = 8;
  pool.parallel_for((cos_sin.rows + kRowsPerTask - 1) / kRowsPerTask, [&](std::int64_t task, int) {
    const std::int64_t begin = task * kRowsPerTask, end = std::min(begin + kRowsPerTask, cos_sin.rows);
    for (std::int64_t j = 0; j < half; ++j) {
      const double frequency = rope.frequencies[static_cast<std::size_t>(j)];
      for (std::int64_t r = begin; r < end; ++r) {
        const double angle = static_cast<double>(positions[static_cast<std::size_t>(r)]) * frequency;
        cos_sin.row(0, r)[j] = static_cast<float>(rope.magnitude * std::cos(angle));
        cos_sin.row(0, r)[half + j] = static_cast<float>(rope.magnitude * std::sin(angle));
      }
    }
  });
}

void rope_append(ThreadPool& pool, const AttentionShape& shape, const TrackWeights& q_norm,
                 const TrackWeights& k_norm, Tensor cos_sin, Tensor q, Tensor k, Tensor v,
                 const StepRows& rows, std::int64_t layer, const KvPool& kv) {
  const std::int64_t head_dim = shape.head_dim;
  PTRT_CHECK(q.width == shape.heads * head_dim && k.width == shape.kv_heads * head_dim && v.width == k.width);
  PTRT_CHECK(kv.kv_heads == shape.kv_heads && kv.head_dim == head_dim && kv.tracks >= q.tracks);
  PTRT_CHECK(kv.dtype == DType::float32 || kv.dtype == DType::bfloat16);
  PTRT_CHECK(!shape.rope || (cos_sin.rows >= q.rows && cos_sin.width == head_dim));
  check_norm(q_norm, q.tracks, head_dim);
  check_norm(k_norm, q.tracks, head_dim);

  const auto encode = PTRT_DISPATCH(encode_heads);
  const auto append_row = kv.dtype == DType::float32 ? append<float> : append<std::uint16_t>;
  const auto encode_and_append = [&](std::int64_t track, std::int64_t r) {
    const float* angles = shape.rope ? cos_sin.row(0, r) : nullptr;
    encode(shape, q.row(track, r), shape.heads, norm_of(q_norm, track), angles);
    encode(shape, k.row(track, r), shape.kv_heads, norm_of(k_norm, track), angles);
    append_row(rows, r, k.row(track, r), v.row(track, r), track, layer, kv);
  };
  const std::int64_t items = q.tracks * q.rows;
  const std::int64_t per_task = std::max<std::int64_t>(1, kElementsPerTask / (q.width + 2 * k.width));
  pool.parallel_for((items + per_task - 1) / per_task, [&](std::int64_t task, int) {
    const std::int64_t end = std::min((task + 1) * per_task, items);
    for (std::int64_t i = task * per_task; i < end; ++i) encode_and_append(i / q.rows, i % q.rows);
  });
}

}  // namespace ptrt
#endif  // HWY_ONCE
