#include "runtime/sampling/logit_rule_state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace ptrt {
namespace {

constexpr std::int64_t kVocab = 100;
const std::vector<std::int64_t> kEos{7, 99};

// The rules by their words, token by token.
struct Expected {
  std::vector<TokenEdit> edits;  // of all tokens
  std::vector<bool> allowed;
};
Expected expected(const Request& request, const std::vector<std::int32_t>& output) {
  Expected out;
  const LogitRules& rules = request.rules;
  for (std::int32_t token = 0; token < kVocab; ++token) {
    const auto times = static_cast<float>(std::ranges::count(output, token));
    TokenEdit edit{token};
    for (const TokenBias& bias : rules.bias)
      if (bias.token == token) edit.bias = bias.bias;
    if (times > 0 || std::ranges::count(request.tokens, token) > 0)
      edit.repetition_penalty = rules.repetition_penalty;
    if (times > 0) edit.subtracted = rules.frequency_penalty * times + rules.presence_penalty;
    out.edits.push_back(edit);
    bool allowed = rules.allowed.empty() || std::ranges::count(rules.allowed, token) > 0;
    for (std::vector<std::int32_t> word : rules.bad_words) {
      if (word.back() != token || word.size() > output.size() + 1) continue;
      word.pop_back();
      if (std::equal(word.rbegin(), word.rend(), output.rbegin())) allowed = false;
    }
    const bool ends = std::ranges::count(kEos, token) + std::ranges::count(request.stop_tokens, token) > 0;
    if (ends && std::ssize(output) < rules.min_tokens) allowed = false;
    out.allowed.push_back(allowed);
  }
  return out;
}

void expect_edits(LogitRuleState& state, const Request& request, const std::vector<std::int32_t>& output) {
  RowEdits row;
  state.fill(output, row);
  const Expected wanted = expected(request, output);
  EXPECT_TRUE(std::ranges::is_sorted(row.get()->tokens, std::less<>(), &TokenEdit::token));
  for (std::int32_t token = 0; token < kVocab; ++token) {
    const auto id = static_cast<std::size_t>(token);
    EXPECT_EQ(row.get()->allows(token), wanted.allowed[id])
        << "token " << token << " after " << output.size();
    const auto edit = std::ranges::find(row.get()->tokens, token, &TokenEdit::token);
    for (const float logit : {-2.0f, 0.0f, 3.0f})
      EXPECT_FLOAT_EQ(edit == row.get()->tokens.end() ? logit : edit->apply(logit),
                      wanted.edits[id].apply(logit));
  }
}

Request full_request() {
  Request request;
  request.tokens = {5, 6, 5, 20};
  request.stop_tokens = {30, 31};
  request.rules = {.repetition_penalty = 1.5f,
                   .presence_penalty = -0.5f,
                   .frequency_penalty = 0.25f,
                   .bias = {{6, 2}, {50, -100}},
                   .allowed = {},
                   .bad_words = {{9}, {1, 2}, {1, 1, 3}, {8, 7}},
                   .min_tokens = 5};
  for (std::int32_t token = 0; token < kVocab; token += 3) request.rules.allowed.push_back(token);
  return request;
}

// Outputs that grow, go back and branch off, as those of drafts do: the edits are of the output alone.
TEST(LogitRuleState, FollowsAnyOutput) {
  for (const int rules : {0, 1, 2, 3, 4}) {
    Request request = full_request();
    const LogitRules all = request.rules;
    if (rules > 0) request.rules = {};
    if (rules == 1) request.rules.frequency_penalty = all.frequency_penalty;
    if (rules == 2) request.rules.repetition_penalty = all.repetition_penalty;
    if (rules == 3) request.rules.bad_words = all.bad_words;
    if (rules == 4) request.rules.bias = all.bias;
    LogitRuleState state(request, kEos, kVocab);
    std::mt19937 random(3);
    std::vector<std::int32_t> output;
    for (int step = 0; step < 60; ++step) {
      if (random() % 4 == 0) output.resize(output.size() - random() % (output.size() + 1));
      const auto added = random() % 3;
      for (unsigned i = 0; i < added; ++i) output.push_back(static_cast<std::int32_t>(random() % 10));
      expect_edits(state, request, output);
    }
  }
}

TEST(LogitRuleState, BadWordsAreOfTheOutputAlone) {
  Request request;
  request.tokens = {1};  // no "1 2" begins in the prompt
  request.rules.bad_words = {{1, 2}, {9}};
  LogitRuleState state(request, kEos, kVocab);
  RowEdits row;
  state.fill({}, row);
  EXPECT_TRUE(row.get()->allows(2));
  EXPECT_FALSE(row.get()->allows(9));
  state.fill(std::vector<std::int32_t>{1}, row);
  EXPECT_FALSE(row.get()->allows(2));
}

TEST(LogitRuleState, EndsMayComeFromMinTokensOn) {
  Request request;
  request.tokens = {1};
  request.ignore_eos = true;  // eos is held back all the same
  request.stop_tokens = {30};
  request.rules.min_tokens = 2;
  LogitRuleState state(request, kEos, kVocab);
  RowEdits row;
  state.fill(std::vector<std::int32_t>{-1}, row);  // a token in flight: only the number counts
  for (const std::int32_t token : {7, 99, 30}) EXPECT_FALSE(row.get()->allows(token));
  EXPECT_TRUE(row.get()->allows(31));
  state.fill(std::vector<std::int32_t>{-1, -1}, row);
  EXPECT_TRUE(row.empty());
}

TEST(LogitRuleState, WhatDependsOnTheOutput) {
  LogitRules rules;
  rules.bias = {{1, 1}};
  rules.allowed = {3};
  rules.min_tokens = 4;
  EXPECT_FALSE(LogitRuleState::depend_on_output(rules));
  for (auto change :
       {+[](LogitRules& r) { r.repetition_penalty = 2; }, +[](LogitRules& r) { r.presence_penalty = 1; },
        +[](LogitRules& r) {
          r.bad_words = {{3, 4}};
        }}) {
    LogitRules changed = rules;
    change(changed);
    EXPECT_TRUE(LogitRuleState::depend_on_output(changed));
  }
}

}  // namespace
}  // namespace ptrt
