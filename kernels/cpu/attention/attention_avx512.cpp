// Compiled for AVX-512 as a whole, so nothing here may be an inline function that other files
// share: the linker might keep this file's copy for processors that cannot run it.
#include "kernels/cpu/attention/attention_avx512.h"

#ifdef __AVX512BF16__
#include <immintrin.h>

namespace ptrt {
namespace {

#define PTRT_UNROLL _Pragma("GCC unroll 16")
#define PTRT_INLINE __attribute__((always_inline)) inline

constexpr int kVectors = static_cast<int>(kSpanTokens / kSumLanes);  // of a query's scores
constexpr std::int64_t kPairs = kSpanTokens / 2, kPagePairs = kPageTokens / 2;
constexpr __mmask16 kAll = 0xFFFF;
static_assert(kPageTokens == kSumLanes && kVectors == 4 && kSpanTokens == 64 && kTileQueries <= 16);

constexpr __mmask16 first_lanes(std::int64_t n) {
  return n >= 16 ? kAll : static_cast<__mmask16>((1u << n) - 1);
}

// One bit a token of the span.
std::uint64_t token_mask(const TokenRange& seen) {
  if (seen.begin >= seen.end) return 0;
  return ~std::uint64_t{0} >> (kSpanTokens - (seen.end - seen.begin)) << seen.begin;
}

PTRT_INLINE __m512bh pairs(__m512i words) {
  return (__m512bh)words;
}

PTRT_INLINE __m512bh broadcast(const std::uint32_t* word) {
  return pairs(_mm512_set1_epi32(static_cast<int>(*word)));
}

// e^x for x <= 0 as 2^t; 0 below about -104 and for NaN. The polynomial is the minimax one of 2^f
// on [-1/2, 1/2] with 1 at 0, good to 1.6e-7.
PTRT_INLINE __m512 exp_nonpositive(__m512 x) {
  const __m512 t = _mm512_max_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _mm512_set1_ps(-200.0f));
  const __m512 whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(t, whole);
  constexpr float kFactors[] = {0.00967151f, 0.05550734f, 0.24022242f, 0.69314698f, 1.0f};
  __m512 power = _mm512_set1_ps(0.00132647f);
  PTRT_UNROLL
  for (int i = 0; i < 5; ++i) power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(kFactors[i]));
  return _mm512_scalef_ps(power, whole);
}

// sums[query][page] += element · key, of one word.
template <int kQueries, int kPages>
PTRT_INLINE void add_scores(const std::uint32_t* element, std::int64_t stride, const __m512i (&key)[kPages],
                            __m512 (&sums)[kQueries][kPages]) {
  PTRT_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    const __m512bh elements = broadcast(element + i * stride);
    PTRT_UNROLL
    for (int p = 0; p < kPages; ++p) sums[i][p] = _mm512_dpbf16_ps(sums[i][p], pairs(key[p]), elements);
  }
}

// scores[query][page · kPageTokens …] = q[query] · keys, for kPages pages; fetches those at `next`
// unless null.
template <int kQueries, int kPages>
PTRT_INLINE void score_pages(const std::uint32_t* q, std::int64_t head_dim, const std::uint16_t* const* keys,
                             const std::uint16_t* const* next, float* scores) {
  __m512 sums[kQueries][kPages];
  PTRT_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    PTRT_UNROLL
    for (int p = 0; p < kPages; ++p) sums[i][p] = _mm512_setzero_ps();
  }
  const std::int64_t words = query_words(head_dim);
  __m512i key[kPages];
  for (std::int64_t j = 0; j < head_dim / 2; ++j) {
    PTRT_UNROLL
    for (int p = 0; p < kPages; ++p) key[p] = _mm512_loadu_si512(keys[p] + j * 2 * kPageTokens);
    if (next != nullptr) {
      PTRT_UNROLL
      for (int p = 0; p < kPages; ++p) _mm_prefetch(next[p] + j * 2 * kPageTokens, _MM_HINT_T0);
    }
    add_scores(q + j, words, key, sums);
  }
  if (head_dim % 2 != 0) {
    PTRT_UNROLL
    for (int p = 0; p < kPages; ++p)
      key[p] = _mm512_cvtepu16_epi32(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys[p] + (head_dim - 1) * kPageTokens)));
    add_scores(q + words - 1, words, key, sums);
  }
  PTRT_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    PTRT_UNROLL
    for (int p = 0; p < kPages; ++p) _mm512_store_ps(scores + i * kSpanTokens + p * kPageTokens, sums[i][p]);
  }
}

// The softmax weights of a tile, zero where not seen, and the factors for the sums so far.
template <int kQueries>
struct TileWeights {
  std::uint64_t seen[kQueries];
  alignas(64) std::uint32_t words[kQueries][kPairs];  // a pair of tokens each, rounded to bfloat16
  alignas(64) float rescale[16];
};

// From scores (undefined where not seen) to weights. Updates the largest scores, and the sums with
// the weights before rounding.
template <int kQueries>
PTRT_INLINE void update_softmax(const float* scores, const TileState& state, TileWeights<kQueries>& weights) {
  alignas(64) float max[16] = {};
  for (int i = 0; i < kQueries; ++i) {
    __m512 largest = _mm512_set1_ps(state.max[i]);
    PTRT_UNROLL
    for (int v = 0; v < kVectors; ++v)
      largest = _mm512_mask_max_ps(largest, static_cast<__mmask16>(weights.seen[i] >> 16 * v),
                                   _mm512_load_ps(scores + i * kSpanTokens + v * 16), largest);
    max[i] = _mm512_reduce_max_ps(largest);
  }
  const __m512 old_max = _mm512_maskz_loadu_ps(first_lanes(kQueries), state.max),
               new_max = _mm512_load_ps(max);
  const __mmask16 same = _mm512_cmp_ps_mask(old_max, new_max, _CMP_EQ_OQ);
  const __m512 shrink = exp_nonpositive(_mm512_sub_ps(old_max, new_max));
  _mm512_store_ps(weights.rescale, _mm512_mask_mov_ps(shrink, same, _mm512_set1_ps(1.0f)));
  _mm512_mask_storeu_ps(state.max, first_lanes(kQueries), new_max);
  for (int i = 0; i < kQueries; ++i) {
    const __m512 shift = _mm512_set1_ps(max[i]);
    __m512 weight[kVectors];
    PTRT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m512 score = _mm512_load_ps(scores + i * kSpanTokens + v * 16);
      weight[v] = _mm512_maskz_mov_ps(static_cast<__mmask16>(weights.seen[i] >> 16 * v),
                                      exp_nonpositive(_mm512_sub_ps(score, shift)));
    }
    float* const sums = state.sums + i * kSumLanes;
    const __m512 sum =
        _mm512_add_ps(_mm512_add_ps(weight[0], weight[1]), _mm512_add_ps(weight[2], weight[3]));
    _mm512_storeu_ps(sums, _mm512_fmadd_ps(_mm512_loadu_ps(sums), _mm512_set1_ps(weights.rescale[i]), sum));
    _mm512_store_si512(weights.words[i], (__m512i)_mm512_cvtne2ps_pbh(weight[1], weight[0]));
    _mm512_store_si512(weights.words[i] + 16, (__m512i)_mm512_cvtne2ps_pbh(weight[3], weight[2]));
  }
}

// The pairs of a span that some query of a tile sees, and among them those that every query sees in
// full.
struct PairRange {
  std::int64_t begin, whole_begin, whole_end, end;
};

PairRange pair_range(const TokenRange& first, const TokenRange& last) {
  const std::int64_t begin = first.begin / 2, end = (last.end + 1) / 2;
  const std::int64_t whole_begin = (last.begin + 1) / 2, whole_end = first.end / 2;
  if (whole_begin >= whole_end) return {begin, end, end, end};
  return {begin, whole_begin, whole_end, end};
}

// sums += weight · value of one pair, for a query that sees the tokens of the pair whose bits are
// set in `seen`. The word of a value that it does not see is cleared, as it may hold anything.
template <int kColumns>
PTRT_INLINE void add_seen(std::uint64_t seen, const std::uint32_t* weight, const __m512i (&value)[kColumns],
                          __m512 (&sums)[kColumns]) {
  const std::uint32_t halves = (seen & 1 ? 0x0000FFFFu : 0) | (seen & 2 ? 0xFFFF0000u : 0);
  const __mmask16 lanes = (seen & 3) != 0 ? kAll : 0;
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(halves));
  PTRT_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    // Not by the product's own mask: GCC 12 passes the lower half of it only.
    const __m512bh masked = pairs(_mm512_and_si512(value[c], mask));
    sums[c] = _mm512_mask_mov_ps(sums[c], lanes, _mm512_dpbf16_ps(sums[c], masked, broadcast(weight)));
  }
}

// acc[query][0 … 16 · kColumns) = rescale[query] · acc + Σ_token weight · value, for the columns
// from `column` on; of a single vector of columns only those in `lanes` exist.
template <int kQueries, int kColumns>
PTRT_INLINE void add_values(const TileWeights<kQueries>& weights, const SpanPages<std::uint16_t>& span,
                            const PairRange& range, std::int64_t head_dim, std::int64_t column,
                            __mmask16 lanes, const TileState& state) {
  __m512 sums[kQueries][kColumns];
  __m512i value[kColumns];
  PTRT_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    const __m512 rescale = _mm512_set1_ps(weights.rescale[i]);
    PTRT_UNROLL
    for (int c = 0; c < kColumns; ++c)
      sums[i][c] = _mm512_mul_ps(_mm512_loadu_ps(state.acc + i * state.stride + column + c * 16), rescale);
  }
  for (std::int64_t pair = range.begin; pair < range.end; ++pair) {
    const std::int64_t place = (pair % kPagePairs * head_dim + column) * 2;
    const std::uint16_t* const at = span.values[pair / kPagePairs] + place;
    if (span.next_values != nullptr) {
      PTRT_UNROLL
      for (int c = 0; c < kColumns; ++c)
        _mm_prefetch(span.next_values[pair / kPagePairs] + place + c * 32, _MM_HINT_T0);
    }
    PTRT_UNROLL
    for (int c = 0; c < kColumns; ++c)
      value[c] = kColumns > 1 ? _mm512_loadu_si512(at + c * 32) : _mm512_maskz_loadu_epi32(lanes, at);
    if (pair >= range.whole_begin && pair < range.whole_end) {
      PTRT_UNROLL
      for (int i = 0; i < kQueries; ++i) {
        const __m512bh weight = broadcast(weights.words[i] + pair);
        PTRT_UNROLL
        for (int c = 0; c < kColumns; ++c) sums[i][c] = _mm512_dpbf16_ps(sums[i][c], pairs(value[c]), weight);
      }
    } else {
      PTRT_UNROLL
      for (int i = 0; i < kQueries; ++i)
        add_seen<kColumns>(weights.seen[i] >> 2 * pair, weights.words[i] + pair, value, sums[i]);
    }
  }
  PTRT_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    PTRT_UNROLL
    for (int c = 0; c < kColumns; ++c)
      _mm512_storeu_ps(state.acc + i * state.stride + column + c * 16, sums[i][c]);
  }
}

template <int kQueries>
__attribute__((noinline)) void attend_tile(const std::uint32_t* q, std::int64_t head_dim,
                                           const SpanPages<std::uint16_t>& span, const TokenRange* seen,
                                           const TileState& state) {
  alignas(64) float scores[kQueries * kSpanTokens];
  TileWeights<kQueries> weights;
  for (int i = 0; i < kQueries; ++i) weights.seen[i] = token_mask(seen[i]);
  const std::int64_t pages = (seen[kQueries - 1].end + kPageTokens - 1) / kPageTokens;
  if (pages == kSpanPages) {
    score_pages<kQueries, kSpanPages>(q, head_dim, span.keys, span.next_keys, scores);
  } else {
    for (std::int64_t p = 0; p < pages; ++p)
      score_pages<kQueries, 1>(q, head_dim, span.keys + p,
                               span.next_keys == nullptr ? nullptr : span.next_keys + p,
                               scores + p * kPageTokens);
  }
  update_softmax(scores, state, weights);

  constexpr int kColumns = 4;
  const PairRange range = pair_range(seen[0], seen[kQueries - 1]);
  std::int64_t j = 0;
  for (; j + kColumns * 16 <= head_dim; j += kColumns * 16)
    add_values<kQueries, kColumns>(weights, span, range, head_dim, j, kAll, state);
  for (; j < head_dim; j += 16)
    add_values<kQueries, 1>(weights, span, range, head_dim, j, first_lanes(head_dim - j), state);
}

template <int kQueries = kTileQueries>
void attend_queries(std::int64_t queries, const std::uint32_t* q, std::int64_t head_dim,
                    const SpanPages<std::uint16_t>& span, const TokenRange* seen, const TileState& state) {
  if constexpr (kQueries > 1) {
    if (queries < kQueries) return attend_queries<kQueries - 1>(queries, q, head_dim, span, seen, state);
  }
  attend_tile<kQueries>(q, head_dim, span, seen, state);
}

}  // namespace

void round_query_avx512(const float* q, std::int64_t head_dim, float scale, std::uint32_t* words) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (std::int64_t j = 0; j < head_dim; j += 32) {
    const std::int64_t left = head_dim - j;
    const __m512 low = _mm512_mul_ps(_mm512_maskz_loadu_ps(first_lanes(left), q + j), factor);
    const __m512 high = left > 16
                            ? _mm512_mul_ps(_mm512_maskz_loadu_ps(first_lanes(left - 16), q + j + 16), factor)
                            : _mm512_setzero_ps();
    _mm512_mask_storeu_epi32(words + j / 2, first_lanes((left + 1) / 2),
                             (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

void attend_tile_avx512(std::int64_t queries, const std::uint32_t* q, std::int64_t head_dim,
                        const SpanPages<std::uint16_t>& span, const TokenRange* seen,
                        const TileState& state) {
  attend_queries(queries, q, head_dim, span, seen, state);
}

}  // namespace ptrt

#else
#include "kernels/base/error.h"

namespace ptrt {

void round_query_avx512(const float*, std::int64_t, float, std::uint32_t*) {
  throw_failure("internal error: no AVX-512-BF16 in this build");
}

void attend_tile_avx512(std::int64_t, const std::uint32_t*, std::int64_t, const SpanPages<std::uint16_t>&,
                        const TokenRange*, const TileState&) {
  throw_failure("internal error: no AVX-512-BF16 in this build");
}

}  // namespace ptrt
#endif
