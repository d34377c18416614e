// The engine's choice of tokens: what is asked of the backend for each row, and what becomes of its answer.
#include <algorithm>

#include "runtime/requests/sample_seed.h"
#include "runtime/serving/engine_run.h"

namespace ptrt {
namespace {

SampleParams sample_params(const Request& request, const Sequence& sequence) {
  return {.temperature = request.temperature,
          .top_k = request.top_k,
          .top_p = request.top_p,
          .seed = seed_of_sample(request.seed, sequence.sample),
          .position = static_cast<std::uint64_t>(sequence.generated()),
          .want_logprob = request.logprobs};
}

}  // namespace

void Engine::sample_rows(Run& run, std::span<const LogitRow> rows) {
  bool greedy = true;
  for (std::size_t r = 0; r < rows.size(); r++) {
    const Sequence& sequence = *rows[r].sequence;
    const Request& request = *sequence.asked;
    sample_params_[r] = sample_params(request, sequence);
    greedy &= request.temperature == 0 && !request.logprobs;
  }
  queue_or_sample(greedy, std::ssize(rows));
  run.pipeline.expect_tokens(rows, run.scheduler);
}

// All rows in one call: a step wants at most one row of each sequence, and max_logit_rows() is not
// below the batch.
void Engine::queue_or_sample(bool greedy, std::int64_t rows) {
  const auto count = static_cast<std::size_t>(rows);
  const std::span params(sample_params_.data(), count);
  const std::span sampled(sampled_.data(), count);
  if (steps_ahead_ > 0)
    backend_.queue_sample(forward_.logits(0, rows), params, {});
  else if (greedy && !forward_.has_logits())
    forward_.greedy(0, sampled);
  else
    backend_.sample(forward_.logits(0, rows), params, sampled);
}

void Engine::retire_step(Run& run) {
  const InFlightStep& step = run.pipeline.oldest();
  const std::uint64_t decoded_before = counters_.decode_tokens;
  const std::span sampled(sampled_.data(), step.rows.size());
  if (steps_ahead_ > 0 && !sampled.empty()) backend_.take_sampled(sampled, {});
  for (std::size_t r = 0; r < sampled.size(); r++)
    if (const auto [sequence, place] = step.rows[r]; sequence != nullptr)
      accept_token(run, *sequence, place, sampled[r]);
  const double seconds = run.pipeline.retire();
  counters_.count_step(seconds, step.prefill_rows, counters_.decode_tokens > decoded_before);
}

void Engine::accept_token(Run& run, Sequence& sequence, std::size_t place, const Sampled& sampled) {
  const Request& request = *sequence.asked;
  digest_.add(sequence.request, sampled.finite() ? sampled.token : -1);
  if (!sampled.finite()) {
    sequence.not_finite_at = static_cast<std::int64_t>(place) - sequence.prompt_tokens;
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

  auto& text = run.texts.try_emplace(&sequence, tokenizer_, request.stop).first->second;
  const bool stop_string = text.append(sampled.token);
  const bool eos = !request.ignore_eos && std::ranges::count(config_.eos_token_ids, sampled.token) > 0;
  const bool last = static_cast<std::int64_t>(place) + 1 - sequence.prompt_tokens >= request.max_tokens;
  if (!stop_string && !eos && !last) return;
  sequence.tokens.resize(place + 1);  // without the placeholder of a step in flight
  complete(run, sequence, stop_string || eos ? FinishReason::stop : FinishReason::length);
}

}  // namespace ptrt
