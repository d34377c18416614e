#include "runtime/schedule/step_pipeline.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/step_rows.h"

namespace ptrt {
namespace {

// Three requests of one prompt token each, and their scheduler.
std::vector<Request> short_requests() {
  Request request;
  request.tokens = {7};
  request.max_tokens = 4;
  return std::vector<Request>(3, request);
}

class StepPipelineTest : public ::testing::Test {
 protected:
  // Plans and issues a step, which expects a token of every sequence.
  std::vector<Sequence*> issue() {
    InFlightStep& step = pipeline_.issue();
    const StepPlan& plan = scheduler_.next_step();
    step.prefill_rows = plan.prefill_rows;
    std::vector<Sequence*> sequences;
    for (const LogitRow& row : plan.wanted) sequences.push_back(row.sequence);
    pipeline_.expect_tokens(plan.wanted, scheduler_);
    return sequences;
  }

  std::vector<Request> requests_ = short_requests();
  std::vector<std::int64_t> order_ = {0, 1, 2};
  Scheduler scheduler_{
      {.max_batch = 3, .max_rows = 8, .pages = 8, .max_context = 16}, Task::generate, requests_, order_};
  StepPipeline pipeline_{3};
};

TEST_F(StepPipelineTest, StepsRetireInTheOrderOfTheirIssue) {
  const std::vector<Sequence*> sequences = issue();
  ASSERT_EQ(sequences.size(), 3u);
  issue();
  EXPECT_EQ(pipeline_.in_flight(), 2u);
  EXPECT_THROW(pipeline_.issue(), Error) << "the ring has two places";
  for (std::size_t step = 0; step < 2; ++step) {
    const InFlightStep& oldest = pipeline_.oldest();
    EXPECT_EQ(oldest.prefill_rows, step == 0 ? 3 : 0);
    ASSERT_EQ(oldest.rows.size(), 3u);
    for (std::size_t r = 0; r < 3; ++r) {
      const auto& [sequence, place, draft] = oldest.rows[r];
      EXPECT_EQ(sequence, sequences[r]);
      EXPECT_EQ(draft, kNoDraft);
      EXPECT_EQ(place, 1 + step) << "after the prompt and the tokens of earlier steps";
      EXPECT_EQ(sequence->tokens[place], token_of_sample(static_cast<std::int32_t>(r)));
    }
    EXPECT_GE(pipeline_.retire(), 0);
  }
  EXPECT_EQ(pipeline_.in_flight(), 0u);
  EXPECT_THROW(pipeline_.oldest(), Error);
}

TEST_F(StepPipelineTest, AFinishedSequenceIsDroppedFromTheStepsInFlight) {
  const std::vector<Sequence*> sequences = issue();
  issue();
  pipeline_.retire();
  issue();
  pipeline_.drop(*sequences[1]);
  for (int step = 0; step < 2; ++step) {
    const std::vector<InFlightStep::Row>& rows = pipeline_.oldest().rows;
    ASSERT_EQ(rows.size(), 3u);
    EXPECT_EQ(rows[0].sequence, sequences[0]);
    EXPECT_EQ(rows[1].sequence, nullptr);
    EXPECT_EQ(rows[2].sequence, sequences[2]);
    pipeline_.retire();
  }
}

}  // namespace
}  // namespace ptrt
