// The steps in flight: issued to the backend, tokens not yet taken. On a backend that runs ahead
// there are up to two. The host then feeds a step with placeholders for the tokens of the step
// before it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/schedule/scheduler.h"

namespace ptrt {

struct InFlightStep {
  // Row r of the step's queue_sample().
  struct Row {
    Sequence* sequence = nullptr;   // null: it has finished since, so the result is dropped
    std::size_t place = 0;          // of the token in the sequence
    std::int32_t draft = kNoDraft;  // that was fed before it: the token counts only if the draft was right
  };
  std::vector<Row> rows;
  std::int64_t prefill_rows = 0, draft_rows = 0;
  bool has_alternatives = false;  // some row's tokens come with TopLogprobs
  bool decides_edits = false;  // what is asked of some row of the next step depends on the tokens of this one
  std::chrono::steady_clock::time_point start;
};

class StepPipeline {
 public:
  static constexpr std::uint64_t kMaxInFlight = 2;
  // `max_batch` bounds the rows of a step whose tokens are wanted.
  explicit StepPipeline(std::int64_t max_batch);

  // Starts the next step: its time begins. At most kMaxInFlight may be in flight.
  InFlightStep& issue();
  // The step issued last.
  InFlightStep& newest();
  // The step issued last samples a token for each row, in this order: puts a placeholder into each
  // sequence, for the row that is no draft, which may thereby give up its pages (Scheduler::expect_token).
  void expect_tokens(std::span<const LogitRow> rows, Scheduler& scheduler);

  std::uint64_t in_flight() const { return issued_ - retired_; }
  bool decides_edits() const;  // of any step in flight
  // The step whose tokens are to be taken next; there must be one.
  const InFlightStep& oldest() const;
  // Ends oldest(). Returns the seconds it took: a step issued ahead runs from the end of the one
  // before.
  double retire();
  // Drops the rows of a sequence that has finished from all steps in flight.
  void drop(const Sequence& sequence);

 private:
  InFlightStep& slot(std::uint64_t step) { return steps_[step % kMaxInFlight]; }

  InFlightStep steps_[kMaxInFlight];
  std::uint64_t issued_ = 0, retired_ = 0;  // steps so far; those between are in flight
  std::chrono::steady_clock::time_point last_retired_ = {};
};

}  // namespace ptrt
