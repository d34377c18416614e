// The rows of a decode step, padded to one of the sizes that are recorded.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"

namespace ptrt {

// Padding rows read and write the spare page alone. Each is a token of its own: their positions
// descend, so that they form no run of tokens. Nobody asks for their logits.
class PaddedBatch {
 public:
  explicit PaddedBatch(std::int64_t max_rows);  // of a step; no call allocates

  // rows.spare_slot must be set, and rows.decodes.
  void assign(std::span<const std::int32_t> tokens, const StepRows& rows);
  std::span<const std::int32_t> tokens() const { return tokens_; }
  // As long as the page table of the step is valid.
  const StepRows& rows() const { return rows_; }

 private:
  std::int64_t most_with_drafts_;
  std::vector<std::int32_t> tokens_, positions_, slots_;
  StepRows rows_;
};

}  // namespace ptrt
