#include "kernels/cpu/ops/sampling.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ops/sampling.cpp"
#include "hwy/foreach_target.h"
// foreach_target comes first
#include "kernels/cpu/simd/simd-inl.h"

#ifndef PTRT_KERNELS_CPU_SAMPLING_ONCE_
#define PTRT_KERNELS_CPU_SAMPLING_ONCE_
namespace ptrt {

struct StatsWanted {
  bool any = true;  // else the chunk is not looked at
  bool raw = false, scaled = false;
  float inverse_temperature = 1;
};

}  // namespace ptrt
#endif

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace {

// Sets max and finite. 0 · x is NaN where x is not finite, and the sum of these stays NaN.
void find_max(const float* x, std::int64_t n, ChunkStats& stats) {
  constexpr int kChains = 4;  // hide the latency of both operations
  const FloatVec zero = hn::Zero(kFloats);
  FloatVec largest[kChains], zeros[kChains];
  for (int c = 0; c < kChains; ++c) {
    largest[c] = hn::Set(kFloats, -std::numeric_limits<float>::infinity());
    zeros[c] = zero;
  }
  const auto look_at = [&](FloatVec v, int chain) HWY_ATTR {
    largest[chain] = hn::Max(v, largest[chain]);
    zeros[chain] = hn::MulAdd(v, zero, zeros[chain]);
  };
  std::int64_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes) {
    PTRT_UNROLL
    for (int c = 0; c < kChains; ++c) look_at(hn::LoadU(kFloats, x + i + c * kLanes), c);
  }
  for (; i + kLanes <= n; i += kLanes) look_at(hn::LoadU(kFloats, x + i), 0);
  for (int c = 1; c < kChains; ++c) {
    largest[0] = hn::Max(largest[c], largest[0]);
    zeros[0] = hn::Add(zeros[0], zeros[c]);
  }
  if (i < n) zeros[0] = hn::MulAdd(load_part(x + i, n - i), zero, zeros[0]);
  stats.max = max_lanes(largest[0]);
  for (; i < n; ++i) stats.max = std::max(stats.max, x[i]);
  stats.finite = !std::isnan(sum_lanes(zeros[0]));
}

HWY_INLINE FloatVec weight_of(FloatVec x, float max, float factor) {
  return exp_nonpositive(hn::Mul(hn::Sub(x, hn::Set(kFloats, max)), hn::Set(kFloats, factor)));
}

// Σ e^((x − max) · factor).
HWY_INLINE float sum_of_weights(const float* x, std::int64_t n, float max, float factor) {
  FloatVec sum = hn::Zero(kFloats);
  const std::int64_t whole = whole_vectors(n);
  for (std::int64_t i = 0; i < whole; i += kLanes)
    sum = hn::Add(sum, weight_of(hn::LoadU(kFloats, x + i), max, factor));
  if (whole < n) {
    HWY_ALIGN float part[kLanes];
    hn::Store(weight_of(load_part(x + whole, n - whole), max, factor), kFloats, part);
    sum = hn::Add(sum, load_part(part, n - whole));
  }
  return sum_lanes(sum);
}

ChunkStats chunk_stats(const float* x, std::int64_t n, const StatsWanted& wanted) {
  ChunkStats stats;
  find_max(x, n, stats);
  if (!stats.finite) return stats;
  if (wanted.raw) stats.raw_sum = sum_of_weights(x, n, stats.max, 1.0f);
  if (wanted.scaled) stats.scaled_sum = sum_of_weights(x, n, stats.max, wanted.inverse_temperature);
  return stats;
}

// out[i] = e^((x[i] − max) · factor), the terms of scaled_sum.
void chunk_weights(const float* x, std::int64_t n, float max, float factor, float* out) {
  const std::int64_t whole = whole_vectors(n);
  for (std::int64_t i = 0; i < whole; i += kLanes)
    hn::StoreU(weight_of(hn::LoadU(kFloats, x + i), max, factor), kFloats, out + i);
  if (whole < n) store_part(weight_of(load_part(x + whole, n - whole), max, factor), out + whole, n - whole);
}

}  // namespace
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/base/error.h"
#include "kernels/base/philox.h"
#include "kernels/cpu/simd/dispatch.h"

namespace ptrt {
namespace {

PTRT_EXPORT(chunk_stats);
PTRT_EXPORT(chunk_weights);

constexpr int kBinBits = 12;
constexpr std::size_t kFirstCandidates = 64;  // the first look at the largest logits; grows fourfold
constexpr std::size_t kCandidateGrowth = 4;

float inverse_temperature(const SampleParams& params) {
  return params.temperature > 0 ? std::min(1.0f / params.temperature, std::numeric_limits<float>::max())
                                : 1.0f;
}

bool uses_top_k(const SampleParams& params, std::int64_t vocab) {
  return params.top_k > 0 && params.top_k < vocab;
}
bool uses_top_p(const SampleParams& params) {
  return params.top_p < 1;
}
bool uses_min_p(const SampleParams& params) {
  return params.min_p > 0;
}
// The sums of e^((logit − max) / temperature) are those of all tokens, and needed where all may be chosen.
bool needs_scaled_sums(const SampleParams& params, std::int64_t vocab) {
  return params.temperature > 0 && !uses_top_k(params, vocab) && !uses_min_p(params);
}

// Of the tokens that min_p keeps, given the largest; compared in double, so that every backend keeps the same.
double least_logit(const SampleParams& params, float max) {
  if (!uses_min_p(params)) return -std::numeric_limits<double>::infinity();
  return double{max} + std::log(double{params.min_p}) * double{params.temperature};
}

std::int64_t chunks_of(std::int64_t vocab) {
  return (vocab + kVocabChunk - 1) / kVocabChunk;
}

std::size_t bin_of(float x) {
  return order_of(x) >> (32 - kBinBits);
}

}  // namespace

Sampler::Sampler(ThreadPool& pool) : pool_(pool), selections_(static_cast<std::size_t>(pool.threads())) {
  for (Selection& selection : selections_) selection.histogram.resize(std::size_t{1} << kBinBits);
}

template <class WantedOf>
void Sampler::collect_stats(Tensor logits, const WantedOf& wanted_of) {
  const std::int64_t vocab = logits.width, chunks = chunks_of(vocab);
  PTRT_CHECK(vocab > 0);
  const auto wanted_size = static_cast<std::size_t>(logits.rows * chunks);
  if (stats_.size() < wanted_size) stats_.resize(wanted_size);
  const auto stats_of_chunk = PTRT_DISPATCH(chunk_stats);
  pool_.parallel_for(logits.rows * chunks, [&](std::int64_t task, int) {
    const std::int64_t row = task / chunks, begin = task % chunks * kVocabChunk;
    const StatsWanted wanted = wanted_of(static_cast<std::size_t>(row));
    if (!wanted.any) return;
    stats_[static_cast<std::size_t>(task)] =
        stats_of_chunk(logits.row(0, row) + begin, std::min(kVocabChunk, vocab - begin), wanted);
  });
}

std::span<const ChunkStats> Sampler::stats_of(std::int64_t row, std::int64_t chunks) const {
  return {stats_.data() + row * chunks, static_cast<std::size_t>(chunks)};
}

void Sampler::sample(Tensor logits, std::span<const SampleParams> params, std::span<Sampled> out) {
  const std::int64_t vocab = logits.width, chunks = chunks_of(vocab);
  PTRT_CHECK(static_cast<std::int64_t>(params.size()) == logits.rows && out.size() == params.size());
  collect_stats(logits, [&](std::size_t r) -> StatsWanted {
    const SampleParams& p = params[r];
    return {true, p.want_logprob, p.edits == nullptr && needs_scaled_sums(p, vocab), inverse_temperature(p)};
  });
  pool_.parallel_for(logits.rows, [&](std::int64_t r, int worker) {
    const SampleParams& p = params[static_cast<std::size_t>(r)];
    const std::span<const float> values(logits.row(0, r), static_cast<std::size_t>(vocab));
    const VocabRow row(values, stats_of(r, chunks), inverse_temperature(p));
    Selection& selection = selections_[static_cast<std::size_t>(worker)];
    Sampled& result = out[static_cast<std::size_t>(r)];
    if (!row.finite) {
      result = Sampled::not_finite();
      return;
    }
    result.token =
        p.edits == nullptr ? choose(row, vocab, p, selection) : choose_edited(values, p, selection);
    if (result.token < 0)
      result = Sampled::none_allowed();
    else
      result.logprob = p.want_logprob ? row.log_prob(result.token) : 0.0f;
  });
}

std::int32_t Sampler::choose(const VocabRow& row, std::int64_t vocab, const SampleParams& params,
                             Selection& selection) const {
  if (!(params.temperature > 0)) return row.argmax();
  if (!uses_top_k(params, vocab) && !uses_top_p(params) && !uses_min_p(params))
    return draw_from_all(row, uniform_draw(params.seed, params.position));
  return draw_from_largest(row, vocab, params, selection);
}

std::int32_t Sampler::choose_edited(std::span<const float> logits, const SampleParams& params,
                                    Selection& selection) const {
  const auto vocab = std::ssize(logits);
  selection.edited.assign(logits, *params.edits);
  const std::span<const float> left = selection.edited.logits();
  if (left.empty()) return -1;
  const StatsWanted wanted{true, false, needs_scaled_sums(params, vocab), inverse_temperature(params)};
  selection.edited_stats.clear();
  for (std::int64_t begin = 0; begin < std::ssize(left); begin += kVocabChunk)
    selection.edited_stats.push_back(PTRT_DISPATCH(chunk_stats)(
        left.data() + begin, std::min<std::int64_t>(kVocabChunk, std::ssize(left) - begin), wanted));
  const VocabRow row(left, selection.edited_stats, wanted.inverse_temperature);
  return selection.edited.token(choose(row, vocab, params, selection));
}

void Sampler::log_probs(Tensor logits, std::span<const std::int32_t> targets, std::span<Scored> out) {
  const std::int64_t vocab = logits.width, chunks = chunks_of(vocab);
  PTRT_CHECK(static_cast<std::int64_t>(targets.size()) == logits.rows && out.size() == targets.size());
  collect_stats(logits, [](std::size_t) { return StatsWanted{true, true, false}; });
  for (std::int64_t r = 0; r < logits.rows; ++r) {
    const std::int64_t target = targets[static_cast<std::size_t>(r)];
    PTRT_CHECK(target >= 0 && target < vocab);
    const VocabRow row({logits.row(0, r), static_cast<std::size_t>(vocab)}, stats_of(r, chunks), 1.0f);
    out[static_cast<std::size_t>(r)] = row.finite ? Scored{row.log_prob(target), row.is_argmax(target)}
                                                  : Scored{std::numeric_limits<float>::quiet_NaN(), false};
  }
}

void Sampler::top_log_probs(Tensor logits, std::span<const std::int32_t> counts, std::span<TopLogprobs> out) {
  const std::int64_t vocab = logits.width, chunks = chunks_of(vocab);
  PTRT_CHECK(static_cast<std::int64_t>(counts.size()) == logits.rows && out.size() == counts.size());
  collect_stats(logits, [&](std::size_t r) { return StatsWanted{counts[r] > 0, true, false}; });
  pool_.parallel_for(logits.rows, [&](std::int64_t r, int) {
    const auto count = static_cast<std::size_t>(counts[static_cast<std::size_t>(r)]);
    PTRT_CHECK(count <= kMaxTopLogprobs && count <= static_cast<std::size_t>(vocab));
    if (count == 0) return;
    const VocabRow row({logits.row(0, r), static_cast<std::size_t>(vocab)}, stats_of(r, chunks), 1.0f);
    const std::span likeliest = std::span(out[static_cast<std::size_t>(r)]).first(count);
    if (row.finite)
      row.fill_likeliest(likeliest);
    else
      std::ranges::fill(likeliest, TokenLogprob{0, std::numeric_limits<float>::quiet_NaN()});
  });
}

// First the chunk by the chunks' masses, then the token within it. Where rounding leaves the target
// beyond the end, the last chunk, or token, with any mass is taken.
std::int32_t Sampler::draw_from_all(const VocabRow& row, double u) const {
  double target = u * row.mass();
  std::size_t chunk = 0;
  double in_chunk = 0;
  for (std::size_t c = 0; c < row.stats.size(); ++c) {
    const double mass = row.chunk_mass(row.stats[c]);
    if (!(mass > 0)) continue;
    chunk = c;
    in_chunk = target / row.weight(row.stats[c].max);
    if (target < mass) break;
    target -= mass;
  }
  const std::size_t begin = chunk * static_cast<std::size_t>(kVocabChunk);
  const auto n = std::min<std::size_t>(static_cast<std::size_t>(kVocabChunk), row.logits.size() - begin);
  float weights[kVocabChunk];
  PTRT_DISPATCH(chunk_weights)
  (row.logits.data() + begin, static_cast<std::int64_t>(n), row.stats[chunk].max, row.inverse_temperature,
   weights);
  std::size_t chosen = 0;
  double cumulative = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (!(weights[i] > 0)) continue;
    chosen = i;
    cumulative += weights[i];
    if (cumulative > in_chunk) break;
  }
  return static_cast<std::int32_t>(begin + chosen);
}

// Takes tokens from the largest down, as many as min_p, top_k and top_p keep. A histogram over the upper
// bits of the logits gives segments of the order to gather and sort one after the other, so that
// the vocabulary is never sorted whole.
std::int32_t Sampler::draw_from_largest(const VocabRow& row, std::int64_t vocab, const SampleParams& params,
                                        Selection& selection) const {
  std::vector<std::int32_t>& histogram = selection.histogram;
  std::vector<std::uint64_t>& candidates = selection.candidates;
  std::vector<double>& weights = selection.weights;
  const std::size_t tokens = row.logits.size();
  const bool top_k = uses_top_k(params, vocab), min_p = uses_min_p(params);
  const std::size_t most = top_k ? static_cast<std::size_t>(params.top_k) : tokens;
  const double least = least_logit(params, row.max);
  bool below_least = false;
  // Where top_p alone cuts, the whole mass is known, and candidates beyond top_p of it need not be looked at.
  const double enough = top_k || min_p ? std::numeric_limits<double>::infinity() : params.top_p * row.mass();

  std::fill(histogram.begin(), histogram.end(), 0);
  for (const float logit : row.logits) ++histogram[bin_of(logit)];
  candidates.clear();
  weights.clear();
  candidates.reserve(tokens);
  weights.reserve(tokens);

  double mass = 0;
  std::size_t segment = top_k ? most : kFirstCandidates;
  for (std::size_t bin_end = histogram.size();
       bin_end > 0 && weights.size() < most && !below_least && !(mass >= enough && mass > 0);
       segment *= kCandidateGrowth) {
    std::size_t bin_begin = bin_end, count = 0;
    while (bin_begin > 0 && count < segment) count += static_cast<std::size_t>(histogram[--bin_begin]);
    const std::size_t first = candidates.size();
    for (std::size_t id = 0; id < tokens; ++id) {
      const std::size_t bin = bin_of(row.logits[id]);
      if (bin >= bin_begin && bin < bin_end)
        candidates.push_back(pack_candidate(row.logits[id], static_cast<std::int64_t>(id)));
    }
    const std::size_t kept = std::min(candidates.size(), most);
    const auto begin = candidates.begin() + static_cast<std::ptrdiff_t>(first);
    const auto end = candidates.begin() + static_cast<std::ptrdiff_t>(kept);
    if (end != candidates.end()) std::nth_element(begin, end, candidates.end(), std::greater<>());
    std::sort(begin, end, std::greater<>());
    for (std::size_t i = first; i < kept && !(mass >= enough && mass > 0); ++i) {
      const float logit = row.logits[static_cast<std::size_t>(id_of(candidates[i]))];
      below_least = double{logit} < least;
      if (below_least) break;
      weights.push_back(row.weight(logit));
      mass += weights.back();
    }
    bin_end = bin_begin;
  }
  if ((top_k || min_p) && uses_top_p(params)) {
    const double limit = params.top_p * mass;
    std::size_t keep = 1;
    for (mass = weights[0]; keep < weights.size() && mass < limit; ++keep) mass += weights[keep];
    weights.resize(keep);
  }

  const double target = uniform_draw(params.seed, params.position) * mass;
  std::size_t chosen = 0;
  double cumulative = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!(weights[i] > 0)) continue;
    chosen = i;
    cumulative += weights[i];
    if (cumulative > target) break;
  }
  return id_of(candidates[chosen]);
}

}  // namespace ptrt
#endif  // HWY_ONCE
