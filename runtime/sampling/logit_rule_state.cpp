#include "runtime/sampling/logit_rule_state.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

void set_bit(std::vector<std::uint64_t>& mask, std::int32_t token, bool value) {
  std::uint64_t& word = mask[static_cast<std::size_t>(token / kTokensPerMaskWord)];
  const std::uint64_t bit = std::uint64_t{1} << (token % kTokensPerMaskWord);
  word = value ? word | bit : word & ~bit;
}

// Whether the token after `output` would be the last of `word`.
bool completes(std::span<const std::int32_t> output, std::span<const std::int32_t> word) {
  const auto before = word.first(word.size() - 1);
  return before.size() <= output.size() && std::ranges::equal(output.last(before.size()), before);
}

}  // namespace

LogitRuleState::LogitRuleState(const Request& request, std::span<const std::int64_t> eos, std::int64_t vocab,
                               OutputMasks* masks)
    : request_(request), vocab_(vocab), masks_(masks), ending_(request.stop_tokens) {
  const LogitRules& rules = request.rules;
  PTRT_CHECK(!rules.output || masks_ != nullptr);
  if (rules.output) constraint_ = masks_->shared(rules.output.automaton);
  for (const std::int64_t token : eos) ending_.push_back(static_cast<std::int32_t>(token));
  if (!rules.allowed.empty()) {
    allowed_.resize(static_cast<std::size_t>(mask_words(vocab)));
    for (const std::int32_t token : rules.allowed) set_bit(allowed_, token, true);
  }
  for (const TokenBias& bias : rules.bias) counted_.push_back({bias.token, bias.bias, false, 0});
  if (rules.repetition_penalty == 1) return;
  std::vector<std::int32_t> prompt = request.tokens;
  std::ranges::sort(prompt);
  prompt.erase(std::unique(prompt.begin(), prompt.end()), prompt.end());
  for (const std::int32_t token : prompt) counted(token).in_prompt = true;
}

LogitRuleState::Counted& LogitRuleState::counted(std::int32_t token) {
  const auto at = std::ranges::lower_bound(counted_, token, {}, &Counted::token);
  if (at != counted_.end() && at->token == token) return *at;
  return *counted_.insert(at, {token, 0, false, 0});
}

void LogitRuleState::count(std::span<const std::int32_t> output) {
  const auto [old, now] = std::ranges::mismatch(output_, output);
  for (auto gone = old; gone != output_.end(); ++gone) counted(*gone).in_output--;
  output_.erase(old, output_.end());
  for (auto come = now; come != output.end(); ++come) counted(*come).in_output++;
  output_.insert(output_.end(), now, output.end());
}

TokenEdit LogitRuleState::edit_of(const Counted& token) const {
  const LogitRules& rules = request_.rules;
  TokenEdit edit{token.token, token.bias, 1, 0};
  if (token.in_prompt || token.in_output > 0) edit.repetition_penalty = rules.repetition_penalty;
  if (token.in_output > 0)
    edit.subtracted =
        static_cast<float>(double{rules.frequency_penalty} * static_cast<double>(token.in_output) +
                           double{rules.presence_penalty});
  return edit;
}

// Only what differs from the request's own list needs a mask where all tokens are allowed.
void LogitRuleState::fill_mask(std::span<const std::int32_t> output, std::vector<std::uint64_t>& mask) {
  const LogitRules& rules = request_.rules;
  mask = allowed_;
  if (constraint_) {
    const auto fitting = masks_->allowed(constraint_, output, request_.stop_tokens, &place_);
    if (mask.empty())
      mask = *fitting;
    else
      std::ranges::transform(mask, *fitting, mask.begin(), std::bit_and());
  }
  const auto forbid = [&](std::int32_t token) {
    if (mask.empty())
      mask.assign(static_cast<std::size_t>(mask_words(vocab_)), std::numeric_limits<std::uint64_t>::max());
    set_bit(mask, token, false);
  };
  for (const std::vector<std::int32_t>& word : rules.bad_words)
    if (completes(output, word)) forbid(word.back());
  if (std::ssize(output) < rules.min_tokens)
    for (const std::int32_t token : ending_) forbid(token);
}

void LogitRuleState::fill(std::span<const std::int32_t> output, RowEdits& row) {
  if (request_.rules.has_penalties()) count(output);
  row.tokens_.clear();
  for (const Counted& token : counted_)
    if (token.bias != 0 || token.in_prompt || token.in_output > 0) row.tokens_.push_back(edit_of(token));
  fill_mask(output, row.allowed_);
  row.edits_ = {row.tokens_, row.allowed_};
}

}  // namespace ptrt
