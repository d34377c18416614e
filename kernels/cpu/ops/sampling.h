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
#include "kernels/cpu/ops/edited_row.h"
#include "kernels/cpu/ops/vocab_row.h"
#include "kernels/jobs.h"

namespace ptrt {

class Sampler {
 public:
  explicit Sampler(ThreadPool& pool);

  // One token a row of logits [1, rows, vocab]:
  //  * temperature 0: the largest logit, ties to the lower id;
  //  * else one draw from softmax(logits / temperature), limited to tokens of at least min_p times the largest
  //    probability and to the top_k largest (0: all; ties to the lower id), and of these to the shortest run
  //    of the largest whose mass is at least top_p of theirs (1: all; one token at least);
  //  * where the row has edits, the same of the edited logits of the tokens that they allow;
  //    Sampled::none_allowed() if there are none;
  //  * Sampled::not_finite() where a logit is NaN or infinite.
  // The log-probability is log softmax(logits) of the token, before edits and temperature.
  void sample(Tensor logits, std::span<const SampleParams> params, std::span<Sampled> out);
  // out[r].logprob = log softmax(logits[0, r])[targets[r]]; NaN where a logit of the row is NaN or infinite.
  void log_probs(Tensor logits, std::span<const std::int32_t> targets, std::span<Scored> out);
  // The counts[r] likeliest tokens of each row and their log-probabilities, NaN as above.
  void top_log_probs(Tensor logits, std::span<const std::int32_t> counts, std::span<TopLogprobs> out);

 private:
  // A worker's scratch for rows with top_k, top_p or min_p, and for rows with edits; its vectors grow to
  // the vocabulary on first use.
  struct Selection {
    std::vector<std::int32_t> histogram;    // [bins] tokens by the upper bits of their logit
    std::vector<std::uint64_t> candidates;  // see pack_candidate in the source
    std::vector<double> weights;  // of the candidates that are kept, e^((logit − max) / temperature)
    EditedRow edited;
    std::vector<ChunkStats> edited_stats;  // [chunks of what is left of the row]
  };
  // WantedOf: row → StatsWanted.
  template <class WantedOf>
  void collect_stats(Tensor logits, const WantedOf& wanted_of);
  std::span<const ChunkStats> stats_of(std::int64_t row, std::int64_t chunks) const;
  // `vocab`: of the whole row, of which `row` may hold fewer tokens.
  std::int32_t choose(const VocabRow& row, std::int64_t vocab, const SampleParams& params,
                      Selection& selection) const;
  // -1: the edits allow no token.
  std::int32_t choose_edited(std::span<const float> logits, const SampleParams& params,
                             Selection& selection) const;
  std::int32_t draw_from_all(const VocabRow& row, double u) const;
  std::int32_t draw_from_largest(const VocabRow& row, std::int64_t vocab, const SampleParams& params,
                                 Selection& selection) const;

  ThreadPool& pool_;
  std::vector<ChunkStats> stats_;      // [rows, chunks]
  std::vector<Selection> selections_;  // [workers]
};

}  // namespace ptrt
