// The register tiles of attention: scores, softmax and weighted values of a few queries with one span of
// tokens. Per-target header, see simd-inl.h. T is the element type of the pages, float or hwy::bfloat16_t.
//
// What a query gets here hangs on that query and the tokens it sees, on nothing else: a score is one chain of
// multiply-adds over head_dim, an element of the values one chain over the visible tokens, both ascending,
// however many queries and pages a tile holds. A token that a query does not see is never multiplied into it.

#if defined(PTRT_KERNELS_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PTRT_KERNELS_CPU_ATTENTION_INL_H_
#undef PTRT_KERNELS_CPU_ATTENTION_INL_H_
#else
#define PTRT_KERNELS_CPU_ATTENTION_INL_H_
#endif

#include <algorithm>
#include <limits>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {

constexpr std::int64_t kPageVectors = kPageTokens / kLanes;
static_assert(kPageTokens % kLanes == 0);

// Vectors of sums that a tile keeps in registers; a few more hold what it loads.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr std::int64_t kSumVectors = 24;
#else
constexpr std::int64_t kSumVectors = 12;
#endif
// Pages and value vectors that a tile of so many queries takes at once.
constexpr int pages_of_tile(int queries) {
  const std::int64_t fit = kSumVectors / (queries * kPageVectors);
  return fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
}
constexpr int value_vectors_of_tile(int queries) {
  return kSumVectors / queries >= 4 ? 4 : 2;
}

// The keys and values of one head in the pages of a span, and how many pages there are.
template <typename T>
struct SpanPages {
  const T* keys[kSpanPages];    // each [head_dim][kPageTokens]
  const T* values[kSpanPages];  // each [kPageTokens][head_dim]
  std::int64_t pages = 0;
};

// Tokens of a span, [begin, end).
struct TokenRange {
  std::int64_t begin = 0, end = 0;
  bool empty() const { return begin >= end; }
};

// weights[query][page · kPageTokens …] = q[query] · keys, for kPages pages from `page` on. q is
// [head_dim][kTileQueries].
template <int kQueries, int kPages, typename T>
HWY_INLINE void score_tile(const float* HWY_RESTRICT q, std::int64_t head_dim, const T* const* keys,
                           float* HWY_RESTRICT weights) {
  constexpr int kVectors = kPages * static_cast<int>(kPageVectors);
  FloatVec sum[kQueries][kVectors];
  PTRT_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    PTRT_UNROLL
    for (int c = 0; c < kVectors; ++c) sum[i][c] = hn::Zero(kFloats);
  }
  const T* from[kPages];
  PTRT_UNROLL
  for (int p = 0; p < kPages; ++p) from[p] = keys[p];
  for (std::int64_t j = 0; j < head_dim; ++j) {
    FloatVec key[kVectors];
    PTRT_UNROLL
    for (int c = 0; c < kVectors; ++c)
      key[c] = load_wide(from[c / kPageVectors] + j * kPageTokens + c % kPageVectors * kLanes);
    PTRT_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      const FloatVec element = hn::Set(kFloats, q[j * kTileQueries + i]);
      PTRT_UNROLL
      for (int c = 0; c < kVectors; ++c) sum[i][c] = hn::MulAdd(element, key[c], sum[i][c]);
    }
  }
  PTRT_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    PTRT_UNROLL
    for (int c = 0; c < kVectors; ++c) hn::Store(sum[i][c], kFloats, weights + i * kSpanTokens + c * kLanes);
  }
}

template <int kQueries, typename T>
HWY_INLINE void score_span(const float* q, std::int64_t head_dim, const SpanPages<T>& span, float* weights) {
  constexpr int kPages = pages_of_tile(kQueries);
  std::int64_t page = 0;
  for (; page + kPages <= span.pages; page += kPages)
    score_tile<kQueries, kPages>(q, head_dim, span.keys + page, weights + page * kPageTokens);
  if constexpr (kPages > 1) {
    for (; page < span.pages; ++page)
      score_tile<kQueries, 1>(q, head_dim, span.keys + page, weights + page * kPageTokens);
  }
}

// Turns the scores of one query into softmax weights, zero where not visible, and brings its largest score
// and its sums (lane by lane) up to date; returns what the sums so far were multiplied with.
HWY_INLINE float update_softmax(float* weights, std::int64_t tokens, TokenRange seen, float* max,
                                float* sums) {
  if (seen.begin > 0 || seen.end < tokens) {
    const hn::RebindToSigned<FloatTag> ints;
    const auto begin = hn::Set(ints, static_cast<std::int32_t>(seen.begin));
    const auto end = hn::Set(ints, static_cast<std::int32_t>(seen.end));
    const FloatVec lowest = hn::Set(kFloats, -std::numeric_limits<float>::infinity());
    for (std::int64_t t = 0; t < tokens; t += kLanes) {
      const auto token = hn::Iota(ints, static_cast<std::int32_t>(t));
      const auto visible = hn::AndNot(hn::Lt(token, begin), hn::Lt(token, end));
      hn::Store(hn::IfThenElse(hn::RebindMask(kFloats, visible), hn::Load(kFloats, weights + t), lowest),
                kFloats, weights + t);
    }
  }
  FloatVec largest = hn::Load(kFloats, weights);
  for (std::int64_t t = kLanes; t < tokens; t += kLanes)
    largest = hn::Max(largest, hn::Load(kFloats, weights + t));
  const float old_max = *max, new_max = std::max(old_max, max_lanes(largest));
  const FloatVec shift = hn::Set(kFloats, new_max);
  const float rescale =
      new_max == old_max ? 1.0f : hn::GetLane(exp_nonpositive(hn::Set(kFloats, old_max - new_max)));
  FloatVec sum = hn::Mul(hn::LoadU(kFloats, sums), hn::Set(kFloats, rescale));
  for (std::int64_t t = 0; t < tokens; t += kLanes) {
    const FloatVec score = hn::Load(kFloats, weights + t);
    const FloatVec weight = exp_nonpositive(hn::Sub(score, shift));
    hn::Store(weight, kFloats, weights + t);
    sum = hn::Add(sum, weight);
  }
  hn::StoreU(sum, kFloats, sums);
  *max = new_max;
  return rescale;
}

// acc[query][0 … kVectors · kLanes) = rescale[query] · acc + Σ_token weight · value. `load` widens a vector
// of values.
template <int kQueries, int kVectors, typename T, class Load>
HWY_INLINE void value_tile(const float* HWY_RESTRICT weights, const float* rescale, const SpanPages<T>& span,
                           std::int64_t column, std::int64_t head_dim, TokenRange seen,
                           float* HWY_RESTRICT acc, std::int64_t acc_stride, const Load& load) {
  FloatVec sum[kQueries][kVectors];
  PTRT_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    PTRT_UNROLL
    for (int c = 0; c < kVectors; ++c)
      sum[i][c] =
          hn::Mul(hn::LoadU(kFloats, acc + i * acc_stride + c * kLanes), hn::Set(kFloats, rescale[i]));
  }
  for (std::int64_t t = seen.begin; t < seen.end;) {
    const T* from = span.values[t / kPageTokens] + t % kPageTokens * head_dim + column;
    const std::int64_t page_end = std::min(seen.end, (t / kPageTokens + 1) * kPageTokens);
    for (; t < page_end; ++t, from += head_dim) {
      FloatVec value[kVectors];
      PTRT_UNROLL
      for (int c = 0; c < kVectors; ++c) value[c] = load(from + c * kLanes);
      PTRT_UNROLL
      for (int i = 0; i < kQueries; ++i) {
        const FloatVec weight = hn::Set(kFloats, weights[i * kSpanTokens + t]);
        PTRT_UNROLL
        for (int c = 0; c < kVectors; ++c) sum[i][c] = hn::MulAdd(weight, value[c], sum[i][c]);
      }
    }
  }
  PTRT_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    PTRT_UNROLL
    for (int c = 0; c < kVectors; ++c) hn::StoreU(sum[i][c], kFloats, acc + i * acc_stride + c * kLanes);
  }
}

template <int kQueries, typename T>
HWY_INLINE void add_values(const float* weights, const float* rescale, const SpanPages<T>& span,
                           std::int64_t head_dim, TokenRange seen, float* acc, std::int64_t acc_stride) {
  constexpr int kVectors = value_vectors_of_tile(kQueries);
  const auto load = [](const T* from) HWY_ATTR { return load_wide(from); };
  std::int64_t j = 0;
  for (; j + kVectors * kLanes <= head_dim; j += kVectors * kLanes)
    value_tile<kQueries, kVectors>(weights, rescale, span, j, head_dim, seen, acc + j, acc_stride, load);
  for (; j + kLanes <= head_dim; j += kLanes)
    value_tile<kQueries, 1>(weights, rescale, span, j, head_dim, seen, acc + j, acc_stride, load);
  if (j == head_dim) return;
  const std::int64_t left = head_dim - j;
  value_tile<kQueries, 1>(weights, rescale, span, j, head_dim, seen, acc + j, acc_stride,
                          [left](const T* from) HWY_ATTR { return load_part(from, left); });
}

// The running state of the queries of a tile, one after another.
struct TileState {
  float* acc;   // [queries, stride]     Σ weight · value
  float* sums;  // [queries, kSumLanes]  Σ weight, lane by lane
  float* max;   // [queries]             the largest score
  std::int64_t stride;
};

// A tile of queries with one span. seen[query] never falls from one query to the next, at either end.
template <int kQueries, typename T>
HWY_INLINE void attend_tile(const float* q, std::int64_t head_dim, SpanPages<T> span, const TokenRange* seen,
                            const TileState& state) {
  HWY_ALIGN float weights[kQueries * kSpanTokens];
  float rescale[kQueries];
  span.pages = std::min(span.pages, (seen[kQueries - 1].end + kPageTokens - 1) / kPageTokens);
  score_span<kQueries>(q, head_dim, span, weights);
  for (int i = 0; i < kQueries; ++i)
    if (!seen[i].empty())
      rescale[i] = update_softmax(weights + i * kSpanTokens, span.pages * kPageTokens, seen[i], state.max + i,
                                  state.sums + i * kSumLanes);

  // The tokens that all queries see are added to all at once; those before and after them query by query.
  const auto add_alone = [&](int i, TokenRange tokens) HWY_ATTR {
    if (tokens.empty()) return;
    add_values<1>(weights + i * kSpanTokens, rescale + i, span, head_dim, tokens,
                  state.acc + i * state.stride, state.stride);
    rescale[i] = 1.0f;
  };
  const TokenRange common{seen[kQueries - 1].begin, seen[0].end};
  if (kQueries == 1 || common.empty()) {
    for (int i = 0; i < kQueries; ++i) add_alone(i, seen[i]);
    return;
  }
  for (int i = 0; i < kQueries; ++i) add_alone(i, {seen[i].begin, common.begin});
  add_values<kQueries>(weights, rescale, span, head_dim, common, state.acc, state.stride);
  std::fill(rescale, rescale + kQueries, 1.0f);
  for (int i = 0; i < kQueries; ++i) add_alone(i, {common.end, seen[i].end});
}

template <typename T, int kQueries = kTileQueries>
HWY_INLINE void attend_queries(std::int64_t queries, const float* q, std::int64_t head_dim,
                               const SpanPages<T>& span, const TokenRange* seen, const TileState& state) {
  if constexpr (kQueries > 1) {
    if (queries < kQueries) return attend_queries<T, kQueries - 1>(queries, q, head_dim, span, seen, state);
  }
  attend_tile<kQueries>(q, head_dim, span, seen, state);
}

}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
