// The rows of a step that pass through the layers together: all of them, or one of two halves, of
// which each computes while the other's sums travel.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "runtime/model/logit_rows.h"
#include "runtime/sync/fusion.h"

namespace ptrt {

// The same rows of every track, from `first` on.
Tensor rows_of(const Tensor& all, std::int64_t first, std::int64_t count);

class StepPart {
 public:
  explicit StepPart(std::int64_t max_rows);  // of a step; no call allocates

  // Rows [first, first + count) of a step; `wanted` and `drop_others` as in LogitRows::select(), with
  // rows of the whole step.
  void select(const StepRows& step, std::int64_t first, std::int64_t count,
              std::span<const std::int32_t> wanted, bool drop_others);

  std::int64_t first() const { return first_; }
  std::int64_t count() const { return std::ssize(rows_.positions); }
  const StepRows& rows() const { return rows_; }
  const LogitRows& logit_rows() const { return logit_rows_; }

  Tensor x;          // [1, rows, d]; in the end of its active rows
  BlockInput input;  // of its next block

 private:
  std::int64_t first_ = 0;
  StepRows rows_;
  std::vector<std::int32_t> wanted_;  // counted from first_
  LogitRows logit_rows_;
};

}  // namespace ptrt
