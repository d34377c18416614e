// A row of logits with the statistics of its chunks (sampling.h).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>

#include "kernels/jobs.h"

namespace ptrt {

inline constexpr std::int64_t kVocabChunk = 4096;

// Statistics of one chunk of one row; the sums are set only where they are needed.
struct ChunkStats {
  float max = 0;         // largest logit
  bool finite = true;    // otherwise the row is of no use, and nothing else of it is defined
  float raw_sum = 0;     // Σ e^(logit − max)
  float scaled_sum = 0;  // Σ e^((logit − max) / temperature)
};

// The order of finite floats as the order of integers, with -0 equal to +0.
inline std::uint32_t order_of(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x + 0.0f);
  return bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFu : 0x80000000u);
}

// Larger means a larger logit, or of equal ones the lower id.
inline std::uint64_t pack_candidate(float logit, std::int64_t id) {
  return std::uint64_t{order_of(logit)} << 32 | (0xFFFFFFFFu - static_cast<std::uint32_t>(id));
}
inline std::int32_t id_of(std::uint64_t candidate) {
  return static_cast<std::int32_t>(0xFFFFFFFFu - static_cast<std::uint32_t>(candidate));
}

struct VocabRow {
  std::span<const float> logits;
  std::span<const ChunkStats> stats;
  float max;           // over all chunks
  bool finite = true;  // every logit; otherwise nothing may be asked of the row
  float inverse_temperature;

  VocabRow(std::span<const float> row_logits, std::span<const ChunkStats> row_stats,
           float row_inverse_temperature)
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
  // The likeliest tokens of the row, which has at least as many.
  void fill_likeliest(std::span<TokenLogprob> out) const {
    std::array<std::uint64_t, kMaxTopLogprobs> best = {};  // packed, descending
    std::size_t found = 0;
    float least = 0;  // logit of the last of them
    for (std::size_t chunk = 0; chunk < stats.size(); ++chunk) {
      if (found == out.size() && stats[chunk].max <= least) continue;  // of equal logits the lower id stays
      const std::size_t begin = chunk * static_cast<std::size_t>(kVocabChunk);
      const std::size_t end = std::min(begin + static_cast<std::size_t>(kVocabChunk), logits.size());
      for (std::size_t id = begin; id < end; ++id) {
        if (found == out.size() && logits[id] <= least) continue;
        if (found < out.size()) ++found;
        const auto last = best.begin() + static_cast<std::ptrdiff_t>(found) - 1;
        *last = pack_candidate(logits[id], static_cast<std::int64_t>(id));
        std::rotate(std::upper_bound(best.begin(), last, *last, std::greater<>()), last, last + 1);
        least = logits[static_cast<std::size_t>(id_of(*last))];
      }
    }
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = {id_of(best[i]), log_prob(id_of(best[i]))};
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

}  // namespace ptrt
