// Choice of the next token, and log-probabilities.
//
// Statistics run over fixed chunks of kVocabChunk tokens: a chunk's maximum and its sums of
// exponentials relative to that maximum (in lanes, see simd-inl.h); then the chunks in ascending
// order, in double. A draw is the inverse of the cumulative distribution at u = uniform_draw(seed,
// position), so it depends only on the row and the request.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/host/thread_pool.h"
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

class Sampler {
 public:
  explicit Sampler(ThreadPool& pool);

  // One token a row of logits [1, rows, vocab]:
  //  * temperature 0: the largest logit, ties to the lower id;
  //  * else one draw from softmax(logits / temperature), limited to its top_k largest (0: all; ties to the
  //    lower id), and of these to the shortest run of the largest whose mass is at least top_p of the whole
  //    (1: all; one token at least);
  //  * Sampled::not_finite() where a logit is NaN or infinite.
  // The log-probability is log softmax(logits) of the token, before temperature.
  void sample(Tensor logits, std::span<const SampleParams> params, std::span<Sampled> out);
  // out[r].logprob = log softmax(logits[0, r])[targets[r]]; NaN where a logit of the row is NaN or infinite.
  void log_probs(Tensor logits, std::span<const std::int32_t> targets, std::span<Scored> out);

 private:
  // A worker's scratch for rows with top_k or top_p; its vectors grow to the vocabulary on first
  // use.
  struct Selection {
    std::vector<std::int32_t> histogram;    // [bins] tokens by the upper bits of their logit
    std::vector<std::uint64_t> candidates;  // see pack_candidate in the source
    std::vector<double> weights;  // of the candidates that are kept, e^((logit − max) / temperature)
  };
  struct Row;

  void collect_stats(Tensor logits, std::span<const SampleParams> params);
  std::span<const ChunkStats> stats_of(std::int64_t row, std::int64_t chunks) const;
  std::int32_t draw_from_all(const Row& row, double u) const;
  std::int32_t draw_from_largest(const Row& row, const SampleParams& params, double u,
                                 Selection& selection) const;

  ThreadPool& pool_;
  std::vector<ChunkStats> stats_;      // [rows, chunks]
  std::vector<Selection> selections_;  // [workers]
};

}  // namespace ptrt
