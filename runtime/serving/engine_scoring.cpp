// How the engine scores tokens that are given.
#include <cmath>

#include "runtime/serving/engine_run.h"

namespace ptrt {

// The logits of a row score the token after the row's own.
void Engine::score_rows(std::int64_t first, std::span<const LogitRow> rows) {
  const Tensor logits = forward_.logits(first, std::ssize(rows));
  for (std::size_t r = 0; r < rows.size(); r++)
    targets_[r] = rows[r].sequence->tokens[static_cast<std::size_t>(rows[r].position) + 1];
  backend_.log_probs(logits, {targets_.data(), rows.size()}, {scored_.data(), rows.size()});
  for (std::size_t r = 0; r < rows.size(); r++) {
    Sequence& sequence = *rows[r].sequence;
    sequence.logprobs.push_back(scored_[r].logprob);
    sequence.is_greedy &= scored_[r].greedy;
    if (std::isnan(scored_[r].logprob) && sequence.not_finite_at < 0)
      sequence.not_finite_at = rows[r].position + 1;
  }
}

// Only now: while rows are scored, those after them may be of the same sequence.
void Engine::complete_scored(Run& run, std::span<const LogitRow> rows) {
  for (std::size_t r = 0; r < rows.size(); r++) {
    Sequence& sequence = *rows[r].sequence;
    const bool last_of_step = r + 1 == rows.size() || rows[r + 1].sequence != &sequence;
    const bool last = rows[r].position + 2 == std::ssize(sequence.tokens);
    if (!last_of_step || (!last && sequence.not_finite_at < 0)) continue;
    sequence.first_token_s = seconds_since(run.start);
    complete(run, sequence, FinishReason::length);
  }
}

}  // namespace ptrt
