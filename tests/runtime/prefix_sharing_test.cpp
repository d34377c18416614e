// Sequences that share pages: whatever the schedule, a row finds in each page what its own tokens would have
// written there, and it was written before.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <utility>

#include "runtime/schedule/scheduler.h"

namespace ptrt {
namespace {

using Content = std::uint64_t;  // stands for the keys and values of a token: those of all tokens up to it

Content after(Content before, std::int32_t token) {
  return (before ^ static_cast<std::uint32_t>(token)) * 0x9e3779b97f4a7c15u + 1;
}

// Drives a scheduler with made-up tokens, and keeps a model of the KV pool.
class SharingDriver {
 public:
  SharingDriver(const SchedulerLimits& limits, std::vector<Request> requests, Task task, bool ahead = false)
      : limits_(limits),
        task_(task),
        ahead_(ahead),
        requests_(std::move(requests)),
        scheduler_(limits, task),
        cells_(static_cast<std::size_t>(limits.pages * kPageTokens)) {
    for (std::int64_t i = 0; i < std::ssize(requests_); i++)
      scheduler_.add(i, requests_[static_cast<std::size_t>(i)]);
  }

  void run() {
    while (!scheduler_.done()) {
      std::vector<Expected> late = std::exchange(expected_, {});
      if (!scheduler_.idle()) step();
      tell(std::move(late));
      if (::testing::Test::HasFatalFailure()) return;
      if (!ahead_) tell(std::exchange(expected_, {}));
    }
    std::set<Key> all;
    for (std::int64_t i = 0; i < std::ssize(requests_); i++)
      for (std::int64_t s = 0; s < requests_[static_cast<std::size_t>(i)].samples; s++) all.insert({i, s});
    EXPECT_EQ(finished_, all);
  }
  // Sequences end after this share of their tokens; when scoring, these requests after their first row.
  void end_early(std::int64_t denominator) { denominator_ = denominator; }

  Scheduler& scheduler() { return scheduler_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t steps() const { return steps_; }
  std::int64_t ended_in_prompt() const { return ended_in_prompt_; }

 private:
  using Key = std::pair<std::int64_t, std::int64_t>;  // request, sample
  struct Expected {
    Sequence* sequence;
    Key key;
    std::size_t place;
  };
  static Key key_of(const Sequence& sequence) { return {sequence.request, sequence.sample}; }
  static std::int32_t token_at(Key key, std::size_t place) {
    return static_cast<std::int32_t>(100000 + 10000 * key.first + 1000 * key.second +
                                     static_cast<std::int64_t>(place));
  }
  std::int64_t length_of(const Request& request) const {
    return std::max<std::int64_t>(1, request.max_tokens / denominator_);
  }

  void step() {
    ASSERT_LT(steps_++, 100000) << "no progress";
    const StepPlan& plan = scheduler_.next_step();
    rows_ += std::ssize(plan.tokens);
    write(plan);
    previous_.clear();
    for (std::size_t i = 0; i < plan.wanted.size(); i++) {
      Sequence& sequence = *plan.wanted[i].sequence;
      check(sequence, plan.wanted[i].position);
      if (task_ == Task::score) {
        const bool last_of_step = i + 1 == plan.wanted.size() || plan.wanted[i + 1].sequence != &sequence;
        const bool whole = sequence.cached + 1 == std::ssize(sequence.tokens);
        const bool fails = denominator_ > 1 && sequence.request % denominator_ == 0;
        if (!last_of_step || (!whole && !fails)) continue;
        if (!whole) ended_in_prompt_++;
        end(sequence);
        continue;
      }
      if (plan.wanted[i].scores) continue;
      const auto row = static_cast<std::int32_t>(expected_.size());
      expected_.push_back({&sequence, key_of(sequence), sequence.tokens.size()});
      previous_.push_back(key_of(sequence));
      scheduler_.expect_token(sequence, token_of_sample(row));
    }
  }

  Content& cell(const StepRows& rows, std::int64_t slot, std::int64_t position) {
    const auto at = static_cast<std::size_t>(slot * rows.page_table_stride + position / kPageTokens);
    const std::int64_t page = rows.page_table[at];
    EXPECT_LT(page, limits_.pages);
    return cells_[static_cast<std::size_t>(page * kPageTokens + position % kPageTokens)];
  }

  void write(const StepPlan& plan) {
    const StepRows rows = scheduler_.step_rows();
    for (std::size_t r = 0; r < plan.tokens.size(); r++) {
      const std::int64_t slot = plan.slots[r], position = plan.positions[r];
      std::int32_t token = plan.tokens[r];
      if (token < 0)
        token = token_at(previous_.at(static_cast<std::size_t>(token_of_sample(token))),
                         static_cast<std::size_t>(position));
      cell(rows, slot, position) = after(position == 0 ? 0 : cell(rows, slot, position - 1), token);
    }
  }

  // What the row at `position` reads.
  void check(const Sequence& sequence, std::int64_t position) {
    const Request& request = requests_[static_cast<std::size_t>(sequence.request)];
    Content content = 0;
    for (std::int64_t p = 0; p <= position; p++) {
      const auto place = static_cast<std::size_t>(p);
      content = after(content, p < std::ssize(request.tokens) ? request.tokens[place]
                                                              : token_at(key_of(sequence), place));
      ASSERT_EQ(cell(scheduler_.step_rows(), sequence.slot, p), content)
          << "request " << sequence.request << " sample " << sequence.sample << " reads " << p;
    }
  }

  void tell(std::vector<Expected> tokens) {
    for (const auto& [sequence, key, place] : tokens) {
      if (finished_.contains(key)) continue;
      sequence->tokens[place] = token_at(key, place);
      const Request& request = requests_[static_cast<std::size_t>(key.first)];
      if (static_cast<std::int64_t>(place) + 1 - std::ssize(request.tokens) >= length_of(request))
        end(*sequence);
    }
  }

  void end(Sequence& sequence) {
    EXPECT_TRUE(finished_.insert(key_of(sequence)).second);
    scheduler_.finish(sequence);
  }

  SchedulerLimits limits_;
  Task task_;
  bool ahead_;
  std::int64_t denominator_ = 1;
  std::vector<Request> requests_;
  Scheduler scheduler_;
  std::vector<Content> cells_;
  std::vector<Expected> expected_;
  std::vector<Key> previous_;  // of the step before the one that is being planned
  std::set<Key> finished_;
  std::int64_t rows_ = 0, steps_ = 0, ended_in_prompt_ = 0;
};

// A prompt of `shared` tokens that all have, and `own` ones.
Request sharing_request(std::int64_t shared, std::int64_t own, std::int64_t max_tokens, std::int32_t mark) {
  Request request;
  for (std::int64_t i = 0; i < shared; i++) request.tokens.push_back(static_cast<std::int32_t>(i));
  for (std::int64_t i = 0; i < own; i++)
    request.tokens.push_back(1000 * (mark + 1) + static_cast<std::int32_t>(i));
  request.max_tokens = max_tokens;
  return request;
}

TEST(PrefixSharing, ThePromptIsFedOnce) {
  const std::vector<Request> requests{sharing_request(64, 3, 4, 0), sharing_request(64, 3, 4, 1),
                                      sharing_request(64, 3, 4, 2)};
  const SchedulerLimits limits{
      .max_batch = 3, .max_rows = 128, .pages = 20, .max_context = 128, .prefix_cache = true};
  SharingDriver driver(limits, requests, Task::generate);
  driver.run();
  EXPECT_EQ(driver.steps(), 4) << "pages that are not written yet are shared in the same step";
  EXPECT_EQ(driver.rows(), 64 + 3 * 3 + 3 * 3);
  EXPECT_EQ(driver.scheduler().prefix_counts().reused_tokens, 2 * 64);
  EXPECT_EQ(driver.scheduler().prefix_counts().wanting_logprobs, 0);
}

TEST(PrefixSharing, ALastTokenIsAlwaysFed) {
  const std::vector<Request> requests{sharing_request(64, 0, 2, 0), sharing_request(64, 0, 2, 1)};
  const SchedulerLimits limits{
      .max_batch = 1, .max_rows = 128, .pages = 20, .max_context = 128, .prefix_cache = true};
  SharingDriver driver(limits, requests, Task::generate);
  driver.run();
  EXPECT_EQ(driver.scheduler().prefix_counts().reused_tokens, 48);
}

TEST(PrefixSharing, SamplesShareWithoutTheCache) {
  std::vector<Request> requests{sharing_request(64, 3, 4, 0), sharing_request(64, 3, 4, 0)};
  for (Request& request : requests) request.samples = 3;
  const SchedulerLimits limits{.max_batch = 2, .max_rows = 128, .pages = 20, .max_context = 128};
  SharingDriver driver(limits, requests, Task::generate);
  driver.run();
  EXPECT_EQ(driver.scheduler().prefix_counts().reused_tokens, 2 * 2 * 64) << "each request computes its own";
}

TEST(PrefixSharing, ScoredTokensAndPromptLogprobsAreFed) {
  std::vector<Request> requests(4, sharing_request(64, 3, 0, 0));
  requests[1].score_from = 50;
  requests[2].score_from = 49;
  const SchedulerLimits limits{
      .max_batch = 4, .max_rows = 256, .pages = 20, .max_context = 128, .prefix_cache = true};
  SharingDriver scored(limits, requests, Task::score);
  scored.run();
  EXPECT_EQ(scored.scheduler().prefix_counts().reused_tokens, 48 + 48);
  EXPECT_EQ(scored.scheduler().prefix_counts().wanting_logprobs, 2);

  std::vector<Request> generated(2, sharing_request(64, 3, 1, 0));
  generated[1].prompt_logprobs = 0;
  SharingDriver driver(limits, generated, Task::generate);
  driver.run();
  EXPECT_EQ(driver.scheduler().prefix_counts().reused_tokens, 0);
  EXPECT_EQ(driver.scheduler().prefix_counts().wanting_logprobs, 1);
}

// A preempted sequence of which all but one token is cached is fed two: one alone would never be planned.
TEST(PrefixSharing, WhatIsPreemptedAfterOneTokenComesBack) {
  const std::vector<Request> requests{sharing_request(0, 32, 10, 0), sharing_request(0, 32, 3, 1)};
  const SchedulerLimits limits{
      .max_batch = 2, .max_rows = 64, .pages = 5, .max_context = 64, .prefix_cache = true};
  SharingDriver driver(limits, requests, Task::generate);
  driver.run();
  EXPECT_EQ(driver.scheduler().preemptions(), 1);
  EXPECT_EQ(driver.rows(), 32 + 9 + 32 + (16 + 1) + 1) << "one of its two pages is there";
}

TEST(PrefixSharing, WhatEndsInItsPromptLeavesNothingUnwritten) {
  std::vector<Request> requests;
  for (std::int32_t i = 0; i < 6; i++) {
    requests.push_back(sharing_request(80, 5, 0, i));
    requests.back().score_from = i % 2 == 0 ? 1 : 81;
  }
  const SchedulerLimits limits{
      .max_batch = 6, .max_rows = 20, .pages = 40, .max_context = 128, .prefix_cache = true};
  SharingDriver driver(limits, requests, Task::score);
  driver.end_early(2);
  driver.run();
  EXPECT_GT(driver.ended_in_prompt(), 0);
  EXPECT_GT(driver.scheduler().prefix_counts().reused_tokens, 0);
}

TEST(PrefixSharing, RandomLoads) {
  std::mt19937 random(11);
  const auto between = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  std::int64_t preemptions = 0, reused = 0, ended_in_prompt = 0;
  for (int round = 0; round < 150; round++) {
    SchedulerLimits limits;
    limits.max_batch = between(1, 9);
    limits.max_rows = limits.max_batch + between(0, 40);
    limits.pages = between(8, 40);
    limits.max_context = 200;
    limits.prefix_cache = round % 4 != 3;
    const Task task = round % 3 == 0 ? Task::score : Task::generate;
    std::vector<Request> requests;
    for (std::int64_t i = between(1, 25); i > 0; i--) {
      const auto family = static_cast<std::int32_t>(between(0, 3));
      Request request = sharing_request(between(1, 50), between(0, 12), 0, family);
      for (std::int32_t& token : request.tokens) token += 500 * (family % 2);
      if (request.tokens.size() < 2) request.tokens.push_back(7);
      if (task == Task::score) {
        request.score_from = between(1, std::ssize(request.tokens) - 1);
      } else {
        request.max_tokens = between(1, 60);
        request.samples = between(0, 3) == 0 ? between(2, 5) : 1;
      }
      requests.push_back(std::move(request));
    }
    for (const bool ahead : {false, true})
      for (const std::int64_t denominator : {1, 2, 3}) {
        if (task == Task::score && ahead) continue;
        SharingDriver driver(limits, requests, task, ahead);
        driver.end_early(denominator);
        driver.run();
        ASSERT_FALSE(HasFatalFailure()) << "round " << round;
        preemptions += driver.scheduler().preemptions();
        reused += driver.scheduler().prefix_counts().reused_tokens;
        ended_in_prompt += driver.ended_in_prompt();
      }
  }
  EXPECT_GT(preemptions, 100);
  EXPECT_GT(reused, 10000);
  EXPECT_GT(ended_in_prompt, 10);
}

}  // namespace
}  // namespace ptrt
