// The scheduler alone: every token is fed once and in order, pages are never shared, everything ends.
#include "runtime/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <random>
#include <set>

#include "kernels/error.h"

namespace ptrt {
namespace {

Request request_of(std::int64_t prompt, std::int64_t max_tokens) {
  Request request;
  for (std::int64_t i = 0; i < prompt; i++) request.tokens.push_back(static_cast<std::int32_t>(i));
  request.max_tokens = max_tokens;
  return request;
}

// Drives a scheduler with made-up tokens and checks each step against a model of the KV pool.
class Driver {
 public:
  Driver(const SchedulerLimits& limits, std::vector<Request> requests, Task task = Task::generate)
      : limits_(limits), task_(task), requests_(std::move(requests)), order_(requests_.size()) {
    std::iota(order_.begin(), order_.end(), 0);
    scheduler_ = std::make_unique<Scheduler>(limits, task, requests_, order_);
  }

  void run() {
    while (!scheduler_->done()) step();
    EXPECT_EQ(finished_.size(), requests_.size());
  }
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
      sequence.tokens.push_back(static_cast<std::int32_t>(1000 + sequence.generated()));
      if (sequence.generated() == requests_[static_cast<std::size_t>(sequence.request)].max_tokens)
        end(sequence);
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
      EXPECT_EQ(scored_[sequence.request].size(), sequence.tokens.size() - 1);
    }
    scheduler_->finish(sequence);
  }

  SchedulerLimits limits_;
  Task task_;
  std::vector<Request> requests_;
  std::vector<std::int64_t> order_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<std::int64_t, std::tuple<std::int64_t, std::int64_t, std::int64_t>> cells_;
  std::map<std::int64_t, std::int64_t> generation_;  // by slot: sequences started in it
  std::map<std::int64_t, std::set<std::int64_t>> scored_;
  std::vector<std::int64_t> finished_;
  std::int64_t steps_ = 0;
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

TEST(Scheduler, DecodingGoesOnBesideAPrefill) {
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
    for (std::int64_t i = between(1, 25); i > 0; i--)
      requests.push_back(task == Task::score ? request_of(between(2, 100), 0)
                                             : request_of(between(1, 60), between(1, 50)));
    Driver driver(limits, requests, task);
    driver.run();
  }
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
  EXPECT_EQ(scheduler.running(), 2) << "let in by the next step";
}

}  // namespace
}  // namespace ptrt
