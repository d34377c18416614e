// What a request's rules make of the logits of its next token: a function of the request and the tokens before
// it, so that it is the same after a preemption, on a resume and for a draft.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/logit_edits.h"
#include "runtime/grammar/output_masks.h"
#include "runtime/requests/request.h"

namespace ptrt {

// The edits of one row, in memory of their own.
class RowEdits {
 public:
  RowEdits() = default;
  RowEdits(const RowEdits&) = delete;
  RowEdits& operator=(const RowEdits&) = delete;
  RowEdits(RowEdits&&) = default;

  bool empty() const { return tokens_.empty() && allowed_.empty(); }
  // Valid until the next fill().
  const LogitEdits* get() const { return &edits_; }

 private:
  friend class LogitRuleState;
  std::vector<TokenEdit> tokens_;
  std::vector<std::uint64_t> allowed_;
  LogitEdits edits_;
};

// Of one output. Keeps what the last output came to, so that one that continues it costs little.
class LogitRuleState {
 public:
  // For a request with rules, which outlives this object. `eos`: the model's, which min_tokens holds back
  // together with the request's own stop tokens.
  // `masks`, for requests with LogitRules::output, outlives this object too.
  LogitRuleState(const Request& request, std::span<const std::int64_t> eos, std::int64_t vocab,
                 OutputMasks* masks = nullptr);

  // Whether the edits depend on which tokens the output has, not on their number alone.
  static bool depend_on_output(const LogitRules& rules) {
    return rules.has_penalties() || !rules.bad_words.empty() || rules.output;
  }

  // The edits for the token after `output`. Where they do not depend on its tokens, these may be placeholders.
  void fill(std::span<const std::int32_t> output, RowEdits& row);

 private:
  struct Counted {
    std::int32_t token;
    float bias;
    bool in_prompt;
    std::int64_t in_output;  // how many times
  };
  Counted& counted(std::int32_t token);
  void count(std::span<const std::int32_t> output);
  TokenEdit edit_of(const Counted& token) const;
  void fill_mask(std::span<const std::int32_t> output, std::vector<std::uint64_t>& mask);

  const Request& request_;
  std::int64_t vocab_;
  OutputMasks* masks_;
  std::shared_ptr<OutputMasks::Constraint> constraint_;  // of LogitRules::output
  OutputMasks::Place place_;                             // of the last output, with it
  std::vector<std::int32_t> ending_;                     // eos and stop tokens
  std::vector<std::uint64_t> allowed_;                   // by LogitRules::allowed; empty: all
  std::vector<Counted> counted_;  // tokens ascending: those with a bias, and those that penalties may meet
  std::vector<std::int32_t> output_;  // that `counted_` is of; only with penalties
};

}  // namespace ptrt
