// How the engine scores tokens that are given.
#include <algorithm>
#include <cmath>

#include "runtime/serving/engine_run.h"

namespace ptrt {

void Engine::score_rows(Task task, std::int64_t first, std::span<const LogitRow> rows) {
  const auto piece = static_cast<std::size_t>(forward_.max_logit_rows());
  for (std::size_t at = 0; at < rows.size(); at += piece)
    score_piece(task, first + static_cast<std::int64_t>(at),
                rows.subspan(at, std::min(piece, rows.size() - at)));
}

// The logits of a row score the token after the row's own.
void Engine::score_piece(Task task, std::int64_t first, std::span<const LogitRow> rows) {
  const Tensor logits = forward_.logits(first, std::ssize(rows));
  for (std::size_t r = 0; r < rows.size(); r++)
    targets_[r] = rows[r].sequence->tokens[static_cast<std::size_t>(rows[r].position) + 1];
  backend_.log_probs(logits, {targets_.data(), rows.size()}, {scored_.data(), rows.size()});
  const bool of_prompt = task == Task::generate;
  find_alternatives(of_prompt, logits, rows);
  for (std::size_t r = 0; r < rows.size(); r++) {
    Sequence& sequence = *rows[r].sequence;
    (of_prompt ? sequence.prompt_logprobs : sequence.logprobs).push_back(scored_[r].logprob);
    sequence.is_greedy &= scored_[r].greedy;
    if (!std::isnan(scored_[r].logprob) || sequence.not_finite_at >= 0) continue;
    sequence.not_finite_at = rows[r].position + 1;
    sequence.not_finite_in_prompt = of_prompt;
  }
}

void Engine::find_alternatives(bool of_prompt, Tensor logits, std::span<const LogitRow> rows) {
  bool any = false;
  for (std::size_t r = 0; r < rows.size(); r++) {
    const Request& request = *rows[r].sequence->asked;
    const std::int64_t asked = of_prompt ? request.prompt_logprobs : request.top_logprobs;
    top_counts_[r] = static_cast<std::int32_t>(std::min(asked, config_.vocab_size));
    any |= asked > 0;
  }
  if (!any) return;
  backend_.top_log_probs(logits, std::span(top_counts_).first(rows.size()),
                         std::span(top_).first(rows.size()));
  for (std::size_t r = 0; r < rows.size(); r++) {
    Sequence& sequence = *rows[r].sequence;
    if (top_counts_[r] == 0) continue;
    (of_prompt ? sequence.prompt_top_logprobs : sequence.top_logprobs)
        .emplace_back(top_[r].begin(), top_[r].begin() + top_counts_[r]);
  }
}

// Only now: while rows are scored, those after them may be of the same sequence.
void Engine::complete_scored(Run& run, std::span<const LogitRow> rows) {
  for (std::size_t r = 0; r < rows.size(); r++) {
    Sequence& sequence = *rows[r].sequence;
    const bool last_of_step = r + 1 == rows.size() || rows[r + 1].sequence != &sequence;
    const bool last = sequence.max_tokens == 0 && rows[r].position + 2 == std::ssize(sequence.tokens);
    if (!last_of_step || (!last && sequence.not_finite_at < 0)) continue;
    sequence.first_token_s = seconds_since(run.start);
    complete(run, sequence, FinishReason::length);
  }
}

}  // namespace ptrt
