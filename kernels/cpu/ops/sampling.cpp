#include "kernels/cpu/ops/sampling.h"

#include <algorithm>
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

// The order of finite floats as the order of integers, with -0 equal to +0.
std::uint32_t order_of(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x + 0.0f);
  return bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFu : 0x80000000u);
}

std::size_t bin_of(float x) {
  return order_of(x) >> (32 - kBinBits);
}

// Larger means a larger logit, or of equal ones the lower id.
std::uint64_t pack_candidate(float logit, std::int64_t id) {
  return std::uint64_t{order_of(logit)} << 32 | (0xFFFFFFFFu - static_cast<std::uint32_t>(id));
}
std::int32_t id_of(std::uint64_t candidate) {
  return static_cast<std::int32_t>(0xFFFFFFFFu - static_cast<std::uint32_t>(candidate));
}

}  // namespace

struct Sampler::Row {
  std::span<const float> logits;
  std::span<const ChunkStats> stats;
  float max;           // over all chunks
  bool finite = true;  // every logit; otherwise nothing may be asked of the row
  float inverse_temperature;

  Row(std::span<const float> row_logits, std::span<const ChunkStats> row_stats, float row_inverse_temperature)
      : logits(row_logits),
        stats(row_stats),
        max(row_stats[0].max),
        inverse_temperature(row_inverse_temperature) {
    for (const ChunkStats& chunk : stats) {
      max = std::max(max, chunk.max);
      finite &= chunk.finite;
    }
  }

  std::int32_t argmax() const {
    return static_cast<std::int32_t>(std::find(logits.begin(), logits.end(), max) - logits.begin());
  }
  // Whether argmax() is `token`; looks at one chunk of logits only.
  bool is_argmax(std::int64_t token) const {
    if (logits[static_cast<std::size_t>(token)] != max) return false;
    const auto chunk = static_cast<std::ptrdiff_t>(token / kVocabChunk);
    const auto before = stats.first(static_cast<std::size_t>(chunk));
    if (std::ranges::any_of(before, [&](const ChunkStats& other) { return other.max == max; })) return false;
    const auto begin = logits.begin() + chunk * kVocabChunk, end = logits.begin() + token;
    return std::find(begin, end, max) == end;
  }
  // Finite: logits at the two ends of float32 are farther apart than float32 can tell.
  float log_prob(std::int64_t token) const {
    double sum = 0;
    for (const ChunkStats& chunk : stats) sum += chunk.raw_sum * std::exp(double{chunk.max} - double{max});
    const double exact = double{logits[static_cast<std::size_t>(token)]} - double{max} - std::log(sum);
    return static_cast<float>(std::max(exact, double{std::numeric_limits<float>::lowest()}));
  }
  // e^((logit − max) / temperature)
  double weight(float logit) const {
    return std::exp((double{logit} - double{max}) * double{inverse_temperature});
  }
  double chunk_mass(const ChunkStats& chunk) const { return chunk.scaled_sum * weight(chunk.max); }
  double mass() const {
    double sum = 0;
    for (const ChunkStats& chunk : stats) sum += chunk_mass(chunk);
    return sum;
  }
};

Sampler::Sampler(ThreadPool& pool) : pool_(pool), selections_(static_cast<std::size_t>(pool.threads())) {
  for (Selection& selection : selections_) selection.histogram.resize(std::size_t{1} << kBinBits);
}

// params empty: the raw sums of every row.
void Sampler::collect_stats(Tensor logits, std::span<const SampleParams> params) {
  const std::int64_t vocab = logits.width, chunks = (vocab + kVocabChunk - 1) / kVocabChunk;
  PTRT_CHECK(vocab > 0);
  const auto wanted_size = static_cast<std::size_t>(logits.rows * chunks);
  if (stats_.size() < wanted_size) stats_.resize(wanted_size);
  const auto stats_of_chunk = PTRT_DISPATCH(chunk_stats);
  pool_.parallel_for(logits.rows * chunks, [&](std::int64_t task, int) {
    const std::int64_t row = task / chunks, begin = task % chunks * kVocabChunk;
    StatsWanted wanted{true, false, 1.0f};
    if (!params.empty()) {
      const SampleParams& p = params[static_cast<std::size_t>(row)];
      wanted = {p.want_logprob, p.temperature > 0 && !uses_top_k(p, vocab), inverse_temperature(p)};
    }
    stats_[static_cast<std::size_t>(task)] =
        stats_of_chunk(logits.row(0, row) + begin, std::min(kVocabChunk, vocab - begin), wanted);
  });
}

std::span<const ChunkStats> Sampler::stats_of(std::int64_t row, std::int64_t chunks) const {
  return {stats_.data() + row * chunks, static_cast<std::size_t>(chunks)};
}

void Sampler::sample(Tensor logits, std::span<const SampleParams> params, std::span<Sampled> out) {
  const std::int64_t vocab = logits.width, chunks = (vocab + kVocabChunk - 1) / kVocabChunk;
  PTRT_CHECK(static_cast<std::int64_t>(params.size()) == logits.rows && out.size() == params.size());
  collect_stats(logits, params);
  pool_.parallel_for(logits.rows, [&](std::int64_t r, int worker) {
    const SampleParams& p = params[static_cast<std::size_t>(r)];
    const Row row({logits.row(0, r), static_cast<std::size_t>(vocab)}, stats_of(r, chunks),
                  inverse_temperature(p));
    Sampled& result = out[static_cast<std::size_t>(r)];
    if (!row.finite) {
      result = Sampled::not_finite();
      return;
    }
    if (!(p.temperature > 0)) {
      result.token = row.argmax();
    } else if (uses_top_k(p, vocab) || uses_top_p(p)) {
      result.token = draw_from_largest(row, p, uniform_draw(p.seed, p.position),
                                       selections_[static_cast<std::size_t>(worker)]);
    } else {
      result.token = draw_from_all(row, uniform_draw(p.seed, p.position));
    }
    result.logprob = p.want_logprob ? row.log_prob(result.token) : 0.0f;
  });
}

void Sampler::log_probs(Tensor logits, std::span<const std::int32_t> targets, std::span<Scored> out) {
  const std::int64_t vocab = logits.width, chunks = (vocab + kVocabChunk - 1) / kVocabChunk;
  PTRT_CHECK(static_cast<std::int64_t>(targets.size()) == logits.rows && out.size() == targets.size());
  collect_stats(logits, {});
  for (std::int64_t r = 0; r < logits.rows; ++r) {
    const std::int64_t target = targets[static_cast<std::size_t>(r)];
    PTRT_CHECK(target >= 0 && target < vocab);
    const Row row({logits.row(0, r), static_cast<std::size_t>(vocab)}, stats_of(r, chunks), 1.0f);
    out[static_cast<std::size_t>(r)] = row.finite ? Scored{row.log_prob(target), row.is_argmax(target)}
                                                  : Scored{std::numeric_limits<float>::quiet_NaN(), false};
  }
}

// First the chunk by the chunks' masses, then the token within it. Where rounding leaves the target
// beyond the end, the last chunk, or token, with any mass is taken.
std::int32_t Sampler::draw_from_all(const Row& row, double u) const {
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

// Takes tokens from the largest down, as many as top_k and top_p keep. A histogram over the upper
// bits of the logits gives segments of the order to gather and sort one after the other, so that
// the vocabulary is never sorted whole.
std::int32_t Sampler::draw_from_largest(const Row& row, const SampleParams& params, double u,
                                        Selection& selection) const {
  auto& [histogram, candidates, weights] = selection;
  const std::size_t vocab = row.logits.size();
  const bool top_k = uses_top_k(params, static_cast<std::int64_t>(vocab));
  const std::size_t most = top_k ? static_cast<std::size_t>(params.top_k) : vocab;
  // Without top_k the whole mass is known, and candidates beyond top_p of it need not be looked at.
  const double enough = top_k ? std::numeric_limits<double>::infinity() : params.top_p * row.mass();

  std::fill(histogram.begin(), histogram.end(), 0);
  for (const float logit : row.logits) ++histogram[bin_of(logit)];
  candidates.clear();
  weights.clear();
  candidates.reserve(vocab);
  weights.reserve(vocab);

  double mass = 0;
  std::size_t segment = top_k ? most : kFirstCandidates;
  for (std::size_t bin_end = histogram.size();
       bin_end > 0 && weights.size() < most && !(mass >= enough && mass > 0); segment *= kCandidateGrowth) {
    std::size_t bin_begin = bin_end, count = 0;
    while (bin_begin > 0 && count < segment) count += static_cast<std::size_t>(histogram[--bin_begin]);
    const std::size_t first = candidates.size();
    for (std::size_t id = 0; id < vocab; ++id) {
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
      weights.push_back(row.weight(row.logits[static_cast<std::size_t>(id_of(candidates[i]))]));
      mass += weights.back();
    }
    bin_end = bin_begin;
  }
  if (top_k && uses_top_p(params)) {
    const double limit = params.top_p * mass;
    std::size_t keep = 1;
    for (mass = weights[0]; keep < weights.size() && mass < limit; ++keep) mass += weights[keep];
    weights.resize(keep);
  }

  std::size_t chosen = 0;
  double cumulative = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!(weights[i] > 0)) continue;
    chosen = i;
    cumulative += weights[i];
    if (cumulative > u * mass) break;
  }
  return id_of(candidates[chosen]);
}

}  // namespace ptrt
#endif  // HWY_ONCE
