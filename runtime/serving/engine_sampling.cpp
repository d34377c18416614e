// The engine's choice of tokens: what is asked of the backend for each row, and what becomes of its answer.
#include <algorithm>

#include "runtime/requests/sample_seed.h"
#include "runtime/serving/engine_run.h"

namespace ptrt {
namespace {

// The draw depends on the place in the output, so a row samples what it would without the drafts before it.
SampleParams sample_params(const Request& request, const LogitRow& row) {
  return {.temperature = request.temperature,
          .top_k = request.top_k,
          .top_p = request.top_p,
          .seed = seed_of_sample(request.seed, row.sequence->sample),
          .position = static_cast<std::uint64_t>(row.position + 1 - row.sequence->prompt_tokens),
          .want_logprob = request.logprobs,
          .min_p = request.min_p};
}

}  // namespace

void Engine::sample_rows(Run& run, std::span<const LogitRow> rows) {
  bool greedy = true;
  InFlightStep& step = run.pipeline.newest();
  for (std::size_t r = 0; r < rows.size(); r++) {
    const Request& request = *rows[r].sequence->asked;
    sample_params_[r] = sample_params(request, rows[r]);
    sample_params_[r].edits = edits_of(run, rows[r], row_edits_[r]);
    top_counts_[r] = static_cast<std::int32_t>(std::min(request.top_logprobs, config_.vocab_size));
    greedy &= request.temperature == 0 && !request.logprobs && sample_params_[r].edits == nullptr;
    step.has_alternatives |= top_counts_[r] > 0;
    step.decides_edits |= LogitRuleState::depend_on_output(request.rules);
  }
  queue_or_sample(greedy, step.has_alternatives, std::ssize(rows));
  run.pipeline.expect_tokens(rows, run.scheduler);
}

// The output before the token that the row samples: with the drafts up to the row's own.
std::span<const std::int32_t> Engine::output_before(const LogitRow& row) {
  const Sequence& sequence = *row.sequence;
  const auto known = std::span(sequence.tokens).subspan(static_cast<std::size_t>(sequence.prompt_tokens));
  const std::int64_t drafts = row.position + 1 - std::ssize(sequence.tokens);
  if (drafts == 0) return known;
  drafted_output_.assign(known.begin(), known.end());
  drafted_output_.insert(drafted_output_.end(), sequence.drafts.begin(), sequence.drafts.begin() + drafts);
  return drafted_output_;
}

// Of the logits of the token after the row's; null: none.
const LogitEdits* Engine::edits_of(Run& run, const LogitRow& row, RowEdits& edits) {
  const Request& request = *row.sequence->asked;
  if (!request.rules.any()) return nullptr;
  LogitRuleState& state =
      run.rules.try_emplace(row.sequence, request, config_.eos_token_ids, config_.vocab_size, &masks_)
          .first->second;
  state.fill(output_before(row), edits);
  return edits.empty() ? nullptr : edits.get();
}

// All rows in one call: the scheduler plans no more than max_logit_rows().
void Engine::queue_or_sample(bool greedy, bool alternatives, std::int64_t rows) {
  const auto count = static_cast<std::size_t>(rows);
  const std::span params = std::span(sample_params_).first(count);
  const std::span sampled = std::span(sampled_).first(count);
  const std::span counts = std::span(top_counts_).first(alternatives ? count : 0);
  if (steps_ahead() > 0) return backend_.queue_sample(forward_.logits(0, rows), params, counts);
  if (greedy && !forward_.has_logits()) return forward_.greedy(0, sampled);
  const Tensor logits = forward_.logits(0, rows);
  backend_.sample(logits, params, sampled);
  if (alternatives) backend_.top_log_probs(logits, counts, std::span(top_).first(count));
}

void Engine::retire_step(Run& run) {
  const InFlightStep& step = run.pipeline.oldest();
  const std::uint64_t decoded_before = counters_.decode_tokens;
  const std::span sampled(sampled_.data(), step.rows.size());
  const std::span top = std::span(top_).first(step.has_alternatives ? sampled.size() : 0);
  if (steps_ahead() > 0 && !sampled.empty()) backend_.take_sampled(sampled, top);
  for (std::size_t r = 0; r < sampled.size(); r++)
    if (step.rows[r].sequence != nullptr)
      take_row(run, step.rows[r], sampled[r], top.subspan(top.empty() ? 0 : r));
  for (const InFlightStep::Row& row : step.rows)
    if (row.sequence != nullptr) run.scheduler.settle_drafts(*row.sequence);
  counters_.drafted_tokens += static_cast<std::uint64_t>(step.draft_rows);
  const double seconds = run.pipeline.retire();
  counters_.count_step(seconds, step.prefill_rows, counters_.decode_tokens > decoded_before);
}

void Engine::take_row(Run& run, const InFlightStep::Row& row, const Sampled& sampled,
                      std::span<const TopLogprobs> top) {
  Sequence& sequence = *row.sequence;
  if (row.draft != kNoDraft) {
    if (sequence.tokens.size() != row.place || sequence.tokens.back() != row.draft) return;
    sequence.tokens.push_back(row.draft);
    counters_.accepted_tokens++;
  }
  keep_alternatives(sequence, sampled, top);
  accept_token(run, sequence, row.place, sampled);
}

void Engine::keep_alternatives(Sequence& sequence, const Sampled& sampled, std::span<const TopLogprobs> top) {
  const auto count = std::min(sequence.asked->top_logprobs, config_.vocab_size);
  if (count > 0 && sampled.finite())
    sequence.top_logprobs.emplace_back(top.front().begin(), top.front().begin() + count);
}

void Engine::accept_token(Run& run, Sequence& sequence, std::size_t place, const Sampled& sampled) {
  const Request& request = *sequence.asked;
  const std::int64_t number = static_cast<std::int64_t>(place) - sequence.prompt_tokens;  // in the output
  digest_.add(sequence.request, !sampled.finite() ? -1 : sampled.is_none_allowed() ? -2 : sampled.token);
  if (!sampled.finite() || sampled.is_none_allowed()) {
    (sampled.finite() ? sequence.none_allowed_at : sequence.not_finite_at) = number;
    return complete(run, sequence, FinishReason::stop);
  }
  const double now = seconds_since(run.start);
  if (sequence.first_token_s < 0) {
    sequence.first_token_s = now;
  } else {
    counters_.decode_tokens++;
    sequence.gaps_s.push_back(static_cast<float>(now - sequence.last_token_s));
  }
  sequence.last_token_s = now;
  sequence.tokens[place] = sampled.token;
  if (request.logprobs) sequence.logprobs.push_back(sampled.logprob);

  const bool may_end = number + 1 >= request.rules.min_tokens;
  const bool stop_token = may_end && std::ranges::binary_search(request.stop_tokens, sampled.token);
  const bool eos =
      may_end && !request.ignore_eos && std::ranges::count(config_.eos_token_ids, sampled.token) > 0;
  auto& text = run.texts.try_emplace(&sequence, tokenizer_, request.stop, request.include_stop).first->second;
  // The text of the last token that min_tokens asks for ends no output either.
  const bool stop_string =
      (!stop_token || request.include_stop) && text.append(sampled.token, number >= request.rules.min_tokens);
  const bool last = number + 1 >= request.max_tokens;
  if (!stop_string && !stop_token && !eos && !last) return;
  sequence.tokens.resize(place + 1);  // without the placeholder of a step in flight
  complete(run, sequence, stop_string || stop_token || eos ? FinishReason::stop : FinishReason::length);
}

}  // namespace ptrt
