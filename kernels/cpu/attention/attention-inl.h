// The register tiles of attention (attention_tiles.h): scores, softmax and weighted values in
// float32. Per-target header, see simd-inl.h. T is the element type of the pages, float, or
// std::uint16_t for bfloat16.
//
// A score is one chain of multiply-adds over head_dim; an element of the output is one chain over
// the visible tokens. Both ascend, for any number of queries and pages in a tile.

#if defined(PTRT_KERNELS_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PTRT_KERNELS_CPU_ATTENTION_INL_H_
#undef PTRT_KERNELS_CPU_ATTENTION_INL_H_
#else
#define PTRT_KERNELS_CPU_ATTENTION_INL_H_
#endif

#include <algorithm>
#include <limits>

#include "hwy/cache_control.h"
#include "kernels/cpu/attention/attention_tiles.h"
#include "kernels/cpu/simd/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {

constexpr std::int64_t kPageVectors = kPageTokens / kLanes;
constexpr int kLineVectors = std::max(1, static_cast<int>(16 / kLanes));  // of floats in a cache line
static_assert(kPageTokens % kLanes == 0);

// Vectors of sums that a tile keeps in registers; a few more hold what it loads.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr std::int64_t kSumVectors = 24;
#else
constexpr std::int64_t kSumVectors = 12;
#endif
// Pages and value vectors that a tile of that many queries processes at once.
constexpr int pages_of_tile(int queries) {
  const std::int64_t fit = kSumVectors / (queries * kPageVectors);
  return fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
}
constexpr int value_vectors_of_tile(int queries) {
  return kSumVectors / queries >= 4 ? 4 : 2;
}

// Elements of a 32-bit word of a page that one lane takes, one after another (kv_layout.h).
template <typename T>
constexpr int kElements = static_cast<int>(sizeof(float) / sizeof(T));

HWY_INLINE FloatVec load_page(const float* from) {
  return hn::LoadU(kFloats, from);
}
HWY_INLINE WordVec load_page(const std::uint16_t* from) {
  return load_words(from);
}

// The first n < kLanes words, zeros after them.
HWY_INLINE FloatVec load_page_part(const float* from, std::int64_t n) {
  return load_part(from, n);
}
HWY_INLINE WordVec load_page_part(const std::uint16_t* from, std::int64_t n) {
  HWY_ALIGN std::uint32_t lanes[kLanes] = {};
  std::memcpy(lanes, from, static_cast<std::size_t>(n) * sizeof(std::uint32_t));
  return load_words(lanes);
}

template <int kElement>
HWY_INLINE FloatVec element_of(FloatVec words) {
  return words;
}
template <int kElement>
HWY_INLINE FloatVec element_of(WordVec words) {
  return widen_element<kElement>(words);
}

// sum[i] += factor[i · stride] · (an element of the words).
template <int kElement, int kQueries, int kVectors, class Words>
HWY_INLINE void add_element(const float* factor, std::int64_t stride, const Words (&words)[kVectors],
                            FloatVec (&sum)[kQueries][kVectors]) {
  FloatVec element[kVectors];
  PTRT_UNROLL
  for (int c = 0; c < kVectors; ++c) element[c] = element_of<kElement>(words[c]);
  PTRT_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    const FloatVec factors = hn::Set(kFloats, factor[i * stride]);
    PTRT_UNROLL
    for (int c = 0; c < kVectors; ++c) sum[i][c] = hn::MulAdd(factors, element[c], sum[i][c]);
  }
}

// weights[query][page · kPageTokens …] = q[query] · keys, for kPages pages; fetches those at `next`
// unless null. q is [head_dim][kTileQueries].
template <int kQueries, int kPages, typename T>
HWY_INLINE void score_tile(const float* HWY_RESTRICT q, std::int64_t head_dim, const T* const* keys,
                           const T* const* next, float* HWY_RESTRICT weights) {
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
  const std::int64_t whole = head_dim - head_dim % kElements<T>;
  for (std::int64_t j = 0; j < whole; j += kElements<T>) {
    if (next != nullptr) {  // a line of every page, as is loaded here
      PTRT_UNROLL
      for (int p = 0; p < kPages; ++p) hwy::Prefetch(next[p] + j * kPageTokens);
    }
    decltype(load_page(from[0])) key[kVectors];
    PTRT_UNROLL
    for (int c = 0; c < kVectors; ++c)
      key[c] = load_page(from[c / kPageVectors] + j * kPageTokens + c % kPageVectors * kLanes * kElements<T>);
    add_element<0>(q + j * kTileQueries, 1, key, sum);
    if constexpr (kElements<T> == 2) add_element<1>(q + (j + 1) * kTileQueries, 1, key, sum);
  }
  if constexpr (kElements<T> == 2) {
    if (whole < head_dim) {  // the last elements lie alone
      FloatVec key[kVectors];
      PTRT_UNROLL
      for (int c = 0; c < kVectors; ++c)
        key[c] = load_wide(reinterpret_cast<const hwy::bfloat16_t*>(from[c / kPageVectors]) +
                           whole * kPageTokens + c % kPageVectors * kLanes);
      add_element<0>(q + whole * kTileQueries, 1, key, sum);
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
  const auto next = [&](std::int64_t page)
                        HWY_ATTR { return span.next_keys == nullptr ? nullptr : span.next_keys + page; };
  std::int64_t page = 0;
  for (; page + kPages <= span.pages; page += kPages)
    score_tile<kQueries, kPages>(q, head_dim, span.keys + page, next(page), weights + page * kPageTokens);
  if constexpr (kPages > 1) {
    for (; page < span.pages; ++page)
      score_tile<kQueries, 1>(q, head_dim, span.keys + page, next(page), weights + page * kPageTokens);
  }
}

// Turns the scores of one query into softmax weights, zero where not visible, and updates its
// largest score and its sums (lane by lane). Returns the factor by which the previous sums were
// multiplied. The weights may be rounded to bfloat16; the sums take them before rounding.
HWY_INLINE float update_softmax(float* weights, std::int64_t tokens, TokenRange seen, bool round_weights,
                                float* max, float* sums) {
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
    hn::Store(round_weights ? round_to_bfloat16(weight) : weight, kFloats, weights + t);
    sum = hn::Add(sum, weight);
  }
  hn::StoreU(sum, kFloats, sums);
  *max = new_max;
  return rescale;
}

// sum += weight · value of one token, an element of the words at `from`.
template <int kElement, int kQueries, int kVectors, typename T, class Load>
HWY_INLINE void add_value(const float* weight, const T* from, const Load& load,
                          FloatVec (&sum)[kQueries][kVectors]) {
  decltype(load(from)) value[kVectors];
  PTRT_UNROLL
  for (int c = 0; c < kVectors; ++c) value[c] = load(from + c * kLanes * kElements<T>);
  add_element<kElement>(weight, kSpanTokens, value, sum);
}

// acc[query][0 … kVectors · kLanes) = rescale[query] · acc + Σ_token weight · value. `load` takes a
// vector of words.
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
  for (std::int64_t t = seen.begin - seen.begin % kElements<T>; t < seen.end;) {
    const std::int64_t place = t % kPageTokens * head_dim + column * kElements<T>;
    const T* from = span.values[t / kPageTokens] + place;
    const T* next = span.next_values == nullptr ? nullptr : span.next_values[t / kPageTokens] + place;
    const std::int64_t page_end = std::min(seen.end, (t / kPageTokens + 1) * kPageTokens);
    for (; t < page_end; t += kElements<T>, from += head_dim * kElements<T>) {
      if (next != nullptr) {
        PTRT_UNROLL
        for (int c = 0; c < kVectors; c += kLineVectors) hwy::Prefetch(next + c * kLanes * kElements<T>);
        next += head_dim * kElements<T>;
      }
      if (kElements<T> == 1 || t >= seen.begin) add_value<0>(weights + t, from, load, sum);
      if constexpr (kElements<T> == 2) {
        asm(""
            : "+r"(from));  // no telling that it is the same: kept words would push a sum out of its register
        if (t + 1 < seen.end) add_value<1>(weights + t + 1, from, load, sum);
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
  const auto load = [](const T* from) HWY_ATTR { return load_page(from); };
  std::int64_t j = 0;
  for (; j + kVectors * kLanes <= head_dim; j += kVectors * kLanes)
    value_tile<kQueries, kVectors>(weights, rescale, span, j, head_dim, seen, acc + j, acc_stride, load);
  for (; j + kLanes <= head_dim; j += kLanes)
    value_tile<kQueries, 1>(weights, rescale, span, j, head_dim, seen, acc + j, acc_stride, load);
  if (j == head_dim) return;
  const std::int64_t left = head_dim - j;
  value_tile<kQueries, 1>(weights, rescale, span, j, head_dim, seen, acc + j, acc_stride,
                          [left](const T* from) HWY_ATTR { return load_page_part(from, left); });
}

// A tile of queries with one span. seen[query] never falls from one query to the next, at either
// end.
template <int kQueries, typename T>
HWY_INLINE void attend_tile(const float* q, std::int64_t head_dim, SpanPages<T> span, const TokenRange* seen,
                            bool round_weights, const TileState& state) {
  HWY_ALIGN float weights[kQueries * kSpanTokens];
  float rescale[kQueries];
  span.pages = std::min(span.pages, (seen[kQueries - 1].end + kPageTokens - 1) / kPageTokens);
  score_span<kQueries>(q, head_dim, span, weights);
  for (int i = 0; i < kQueries; ++i)
    if (!seen[i].empty())
      rescale[i] = update_softmax(weights + i * kSpanTokens, span.pages * kPageTokens, seen[i], round_weights,
                                  state.max + i, state.sums + i * kSumLanes);

  // The tokens that all queries see are added to all at once; those before and after them query by
  // query.
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
                               const SpanPages<T>& span, const TokenRange* seen, bool round_weights,
                               const TileState& state) {
  if constexpr (kQueries > 1) {
    if (queries < kQueries)
      return attend_queries<T, kQueries - 1>(queries, q, head_dim, span, seen, round_weights, state);
  }
  attend_tile<kQueries>(q, head_dim, span, seen, round_weights, state);
}

}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
