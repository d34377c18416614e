// The scheduler alone: every token is fed once and in order, pages are never shared, everything ends.
#include "runtime/schedule/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <random>
#include <set>
#include <utility>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

Request request_of(std::int64_t prompt, std::int64_t max_tokens) {
  Request request;
  for (std::int64_t i = 0; i < prompt; i++) request.tokens.push_back(static_cast<std::int32_t>(i));
  request.max_tokens = max_tokens;
  return request;
}

// Drives a scheduler with made-up tokens and checks each step against a model of the KV pool. `ahead`: a step
// is planned before the tokens of the one before are told.
class Driver {
 public:
  Driver(const SchedulerLimits& limits, std::vector<Request> requests, Task task = Task::generate,
         bool ahead = false)
      : limits_(limits),
        task_(task),
        ahead_(ahead),
        requests_(std::move(requests)),
        order_(requests_.size()) {
    std::iota(order_.begin(), order_.end(), 0);
    scheduler_ = std::make_unique<Scheduler>(limits, task, requests_, order_);
  }

  void run() {
    while (!scheduler_->done()) {
      if (scheduler_->idle()) {
        ASSERT_FALSE(expected_.empty()) << "nothing to plan and nothing to wait for";
        tell(take(expected_));
        continue;
      }
      std::vector<Expected> told_late = take(expected_);
      step();
      tell(std::move(told_late));
      if (::testing::Test::HasFatalFailure()) return;
    }
    tell(take(expected_));
    EXPECT_EQ(finished_.size(), requests_.size());
    for (std::size_t i = 0; i < requests_.size(); i++)
      if (task_ == Task::generate) {
        EXPECT_EQ(told_[static_cast<std::int64_t>(i)], length_of(static_cast<std::int64_t>(i)));
      }
  }
  // Sequences end after this share of their tokens, which nobody foresees.
  void end_early(std::int64_t numerator, std::int64_t denominator) { share_ = {numerator, denominator}; }
  std::int64_t dropped() const { return dropped_; }
  std::int64_t steps() const { return steps_; }
  const Scheduler& scheduler() const { return *scheduler_; }
  const std::vector<std::int64_t>& finished() const { return finished_; }

 private:
  void step() {
    ASSERT_LT(steps_++, 100000) << "no progress";
    const StepPlan& plan = scheduler_->next_step();
    const auto rows = static_cast<std::int64_t>(plan.tokens.size());
    ASSERT_LE(rows, limits_.max_rows);
    ASSERT_LE(scheduler_->running(), limits_.max_batch);
    ASSERT_EQ(rows, plan.decode_rows + plan.prefill_rows + plan.recomputed_rows);
    check_cells(plan);
    if (task_ == Task::generate) check_tokens(plan);
    std::set<Sequence*> sampled;
    for (const LogitRow& wanted : plan.wanted) {
      Sequence& sequence = *wanted.sequence;
      ASSERT_EQ(plan.positions[static_cast<std::size_t>(wanted.row)], wanted.position);
      const bool last = wanted.position + (task_ == Task::score ? 2 : 1) ==
                        static_cast<std::int64_t>(sequence.tokens.size());
      if (task_ == Task::score) {
        scored_[sequence.request].insert(wanted.position);
        if (last) end(sequence);
        continue;
      }
      ASSERT_TRUE(last) << "only the last token's logits are wanted";
      ASSERT_TRUE(sampled.insert(&sequence).second);
      const auto row = static_cast<std::int32_t>(expected_.size());
      expected_.push_back({&sequence, sequence.request, sequence.tokens.size()});
      scheduler_->expect_token(sequence, token_of_sample(row));
      ASSERT_LE(sequence.generated(), request_of(sequence.request).max_tokens);
    }
    previous_.clear();
    for (const Expected& token : expected_) previous_.push_back(token.request);
    if (!ahead_) tell(take(expected_));
  }

  struct Expected {
    Sequence* sequence;  // null: it has finished
    std::int64_t request;
    std::size_t place;
  };
  static std::vector<Expected> take(std::vector<Expected>& from) { return std::exchange(from, {}); }
  const Request& request_of(std::int64_t index) const { return requests_[static_cast<std::size_t>(index)]; }
  // Tokens of a request when it ends.
  std::int64_t length_of(std::int64_t index) const {
    return std::max<std::int64_t>(1, request_of(index).max_tokens * share_.first / share_.second);
  }
  static std::int32_t token_at(std::int64_t request, std::size_t place) {
    return static_cast<std::int32_t>(1000 + 1000 * request + static_cast<std::int64_t>(place));
  }

  void tell(std::vector<Expected> tokens) {
    for (const Expected& token : tokens) {
      if (token.sequence == nullptr) {
        dropped_++;
        continue;
      }
      token.sequence->tokens[token.place] = token_at(token.request, token.place);
      if (++told_[token.request] < length_of(token.request)) continue;
      for (Expected& other : expected_)
        if (other.sequence == token.sequence) other.sequence = nullptr;
      end(*token.sequence);
    }
  }

  // Every row feeds the token that was told, or the placeholder of the row that brings it.
  void check_tokens(const StepPlan& plan) {
    std::map<std::int64_t, std::int64_t> request_of_slot;
    for (const LogitRow& wanted : plan.wanted)
      request_of_slot[plan.slots[static_cast<std::size_t>(wanted.row)]] = wanted.sequence->request;
    for (std::size_t r = 0; r < plan.tokens.size(); r++) {
      const auto found = request_of_slot.find(plan.slots[r]);
      if (found == request_of_slot.end()) continue;
      const std::int64_t request = found->second, prompt = std::ssize(request_of(request).tokens);
      const std::int32_t token = plan.tokens[r];
      if (token < 0) {
        ASSERT_EQ(previous_.at(static_cast<std::size_t>(token_of_sample(token))), request);
      } else if (plan.positions[r] >= prompt) {
        ASSERT_EQ(token, token_at(request, static_cast<std::size_t>(plan.positions[r])));
      }
    }
  }

  // Feeds the rows into a model of the pool: a cell holds (slot's latest sequence, position). Every earlier
  // position of the sequence must be held where the page table says.
  void check_cells(const StepPlan& plan) {
    const StepRows rows = scheduler_->step_rows();
    const auto cell_of = [&](std::int64_t slot, std::int64_t position) {
      const auto page =
          rows.page_table[static_cast<std::size_t>(slot * rows.page_table_stride + position / kPageTokens)];
      EXPECT_GE(page, 0);
      EXPECT_LT(page, limits_.pages);
      return page * kPageTokens + position % kPageTokens;
    };
    for (std::size_t r = 0; r < plan.tokens.size(); r++) {
      const std::int64_t slot = plan.slots[r], position = plan.positions[r];
      if (position == 0) generation_[slot]++;
      cells_[cell_of(slot, position)] = {slot, generation_[slot], position};
    }
    for (std::size_t r = 0; r < plan.tokens.size(); r++) {
      const std::int64_t slot = plan.slots[r];
      for (std::int64_t p = 0; p <= plan.positions[r]; p++)
        ASSERT_EQ(cells_[cell_of(slot, p)], std::make_tuple(slot, generation_[slot], p));
    }
  }

  void end(Sequence& sequence) {
    finished_.push_back(sequence.request);
    if (task_ == Task::score) {
      const std::set<std::int64_t>& scored = scored_[sequence.request];
      EXPECT_EQ(std::ssize(scored), std::ssize(sequence.tokens) - sequence.score_from);
      EXPECT_EQ(*scored.begin(), sequence.score_from - 1);
    }
    scheduler_->finish(sequence);
  }

  SchedulerLimits limits_;
  Task task_;
  bool ahead_;
  std::pair<std::int64_t, std::int64_t> share_ = {1, 1};
  std::vector<Request> requests_;
  std::vector<std::int64_t> order_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<std::int64_t, std::tuple<std::int64_t, std::int64_t, std::int64_t>> cells_;
  std::map<std::int64_t, std::int64_t> generation_;  // by slot: sequences started in it
  std::map<std::int64_t, std::set<std::int64_t>> scored_;
  std::vector<std::int64_t> finished_;
  std::int64_t steps_ = 0, dropped_ = 0;
  std::vector<Expected> expected_;      // of the last step planned, in the order of its rows
  std::vector<std::int64_t> previous_;  // the requests of the step before the one that is being planned
  std::map<std::int64_t, std::int64_t> told_;
};

TEST(Scheduler, OneRequestTakesOneStepAToken) {
  Driver driver({1, 64, 4, 64}, {request_of(20, 10)});
  driver.run();
  EXPECT_EQ(driver.steps(), 10) << "the prefill step gives the first token";
}

TEST(Scheduler, LongPromptsComeInChunks) {
  Driver driver({1, 8, 8, 128}, {request_of(30, 1)});
  driver.run();
  EXPECT_EQ(driver.steps(), 4);
}

TEST(Scheduler, DecodingContinuesBesideAPrefill) {
  Driver driver({2, 8, 32, 256}, {request_of(4, 12), request_of(40, 1)});
  driver.run();
  EXPECT_EQ(driver.finished(), (std::vector<std::int64_t>{1, 0}));
  EXPECT_LE(driver.steps(), 12);
}

TEST(Scheduler, PreemptsTheNewestAndStillEnds) {
  // Two pages hold one sequence of 32; three sequences of 30 want six.
  Driver driver({3, 64, 3, 64}, {request_of(10, 20), request_of(10, 20), request_of(10, 20)});
  driver.run();
  EXPECT_GT(driver.scheduler().preemptions(), 0);
  EXPECT_EQ(driver.finished().front(), 0) << "the oldest is never preempted";
}

TEST(Scheduler, RandomLoads) {
  std::mt19937 random(5);
  const auto between = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  for (int round = 0; round < 60; round++) {
    SchedulerLimits limits;
    limits.max_batch = between(1, 9);
    limits.max_rows = limits.max_batch + between(0, 40);
    limits.pages = between(7, 40);
    limits.max_context = 200;
    const Task task = round % 3 == 0 ? Task::score : Task::generate;
    std::vector<Request> requests;
    for (std::int64_t i = between(1, 25); i > 0; i--) {
      const std::int64_t length = between(2, 100);
      requests.push_back(task == Task::score ? request_of(length, 0)
                                             : request_of(between(1, 60), between(1, 50)));
      if (task == Task::score && i % 2 == 0) requests.back().score_from = between(1, length - 1);
    }
    for (const bool ahead : {false, true})
      for (const std::int64_t share : {1, 2, 3}) {
        if (task == Task::score && (ahead || share > 1)) continue;
        Driver driver(limits, requests, task, ahead);
        driver.end_early(1, share);
        driver.run();
        ASSERT_FALSE(HasFatalFailure()) << "round " << round;
      }
  }
}

TEST(Scheduler, PlansAheadWithoutALostStep) {
  Driver driver({1, 64, 4, 64}, {request_of(20, 10)}, Task::generate, true);
  driver.run();
  EXPECT_EQ(driver.steps(), 10) << "the end by max_tokens is foreseen";
  EXPECT_EQ(driver.dropped(), 0);
}

TEST(Scheduler, DropsTheRowAfterAnUnforeseenEnd) {
  Driver driver({2, 64, 8, 64}, {request_of(20, 10), request_of(5, 20)}, Task::generate, true);
  driver.end_early(1, 2);
  driver.run();
  EXPECT_EQ(driver.dropped(), 2);
}

TEST(Scheduler, PreemptsASequenceWhoseTokenIsExpected) {
  Driver driver({3, 64, 3, 64}, {request_of(10, 20), request_of(10, 20), request_of(10, 20)}, Task::generate,
                true);
  driver.run();
  EXPECT_GT(driver.scheduler().preemptions(), 0);
}

// One that is preempted in the very step in which it turns out to have ended is taken from those that wait.
TEST(Scheduler, EndsWhileItWaits) {
  const std::vector<Request> requests{request_of(16, 40), request_of(15, 40)};
  const std::vector<std::int64_t> order{0, 1};
  Scheduler scheduler({.max_batch = 2, .max_rows = 64, .pages = 4, .max_context = 64}, Task::generate,
                      requests, order);
  Sequence* second = nullptr;
  for (std::int64_t preemptions = 0; preemptions == 0; preemptions = scheduler.preemptions()) {
    const StepPlan& plan = scheduler.next_step();
    if (plan.wanted.size() == 2) second = plan.wanted[1].sequence;
    for (const LogitRow& wanted : plan.wanted) scheduler.expect_token(*wanted.sequence, 1);
  }
  EXPECT_EQ(second->slot, -1);
  scheduler.finish(*second);
  EXPECT_EQ(scheduler.running(), 1);
  EXPECT_FALSE(scheduler.done());
}

// Rows that fill a step up have a slot and a page of their own.
TEST(Scheduler, LeavesASpareSlot) {
  const std::vector<Request> requests{request_of(20, 10)};
  const std::vector<std::int64_t> order{0};
  Scheduler scheduler({.max_batch = 2, .max_rows = 64, .pages = 4, .max_context = 64}, Task::generate,
                      requests, order);
  scheduler.next_step();
  const StepRows rows = scheduler.step_rows();
  EXPECT_EQ(rows.spare_slot, 2);
  EXPECT_FALSE(rows.decodes) << "a prompt's pages may be read by others";
  ASSERT_EQ(std::ssize(rows.page_table), 3 * rows.page_table_stride);
  for (std::int64_t i = 0; i < rows.page_table_stride; i++)
    EXPECT_EQ(rows.page_table[static_cast<std::size_t>(2 * rows.page_table_stride + i)], 4)
        << "the page after the last";
}

TEST(Scheduler, RefusesWhatCanNeverFit) {
  const std::vector<Request> requests{request_of(40, 10)};
  const std::vector<std::int64_t> order{0};
  EXPECT_THROW(Scheduler({1, 64, 3, 64}, Task::generate, requests, order), Error);
}

TEST(Scheduler, LetsInWhatHasArrived) {
  const std::vector<Request> requests{request_of(4, 2), request_of(4, 2), request_of(4, 2)};
  const std::vector<std::int64_t> order{0, 1, 2};
  Scheduler scheduler({.max_batch = 4, .max_rows = 64, .pages = 8, .max_context = 32}, Task::generate,
                      requests, order);
  scheduler.set_arrived(0);
  EXPECT_TRUE(scheduler.idle());
  EXPECT_FALSE(scheduler.done());
  scheduler.set_arrived(2);
  EXPECT_FALSE(scheduler.idle());
  scheduler.next_step();
  EXPECT_EQ(scheduler.running(), 2);
  scheduler.set_arrived(3);
  EXPECT_EQ(scheduler.running(), 2) << "admitted by the next step";
}

}  // namespace
}  // namespace ptrt
