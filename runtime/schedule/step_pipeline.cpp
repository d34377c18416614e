#include "runtime/schedule/step_pipeline.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/step_rows.h"

namespace ptrt {

using Clock = std::chrono::steady_clock;

StepPipeline::StepPipeline(std::int64_t max_batch) {
  for (InFlightStep& step : steps_) step.rows.reserve(static_cast<std::size_t>(max_batch));
}

InFlightStep& StepPipeline::issue() {
  PTRT_CHECK(in_flight() < kMaxInFlight);
  InFlightStep& step = slot(issued_++);
  step.rows.clear();
  step.prefill_rows = step.draft_rows = 0;
  step.has_alternatives = step.decides_edits = false;
  step.start = Clock::now();
  return step;
}

InFlightStep& StepPipeline::newest() {
  PTRT_CHECK(in_flight() > 0);
  return slot(issued_ - 1);
}

bool StepPipeline::decides_edits() const {
  for (std::uint64_t step = retired_; step < issued_; ++step)
    if (steps_[step % kMaxInFlight].decides_edits) return true;
  return false;
}

void StepPipeline::expect_tokens(std::span<const LogitRow> rows, Scheduler& scheduler) {
  InFlightStep& step = newest();
  for (const LogitRow& row : rows) {
    const auto index = static_cast<std::int32_t>(step.rows.size());
    step.rows.push_back({row.sequence, static_cast<std::size_t>(row.position) + 1, row.draft});
    if (row.draft == kNoDraft) scheduler.expect_token(*row.sequence, token_of_sample(index));
  }
}

const InFlightStep& StepPipeline::oldest() const {
  PTRT_CHECK(in_flight() > 0);
  return steps_[retired_ % kMaxInFlight];
}

double StepPipeline::retire() {
  const auto now = Clock::now(), start = std::max(oldest().start, last_retired_);
  last_retired_ = now;
  retired_++;
  return std::chrono::duration<double>(now - start).count();
}

void StepPipeline::drop(const Sequence& sequence) {
  for (std::uint64_t step = retired_; step < issued_; ++step)
    for (InFlightStep::Row& row : slot(step).rows)
      if (row.sequence == &sequence) row.sequence = nullptr;
}

}  // namespace ptrt
