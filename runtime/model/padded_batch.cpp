#include "runtime/model/padded_batch.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/model/step_recorder.h"

namespace ptrt {

PaddedBatch::PaddedBatch(std::int64_t max_rows) : most_with_drafts_(std::min(max_rows, kMostRowsWithDrafts)) {
  for (std::vector<std::int32_t>* list : {&tokens_, &positions_, &slots_})
    list->reserve(static_cast<std::size_t>(max_rows));
}

void PaddedBatch::assign(std::span<const std::int32_t> tokens, const StepRows& rows) {
  tokens_.assign(tokens.begin(), tokens.end());
  positions_.assign(rows.positions.begin(), rows.positions.end());
  slots_.assign(rows.slots.begin(), rows.slots.end());
  const std::int64_t slots = std::ssize(rows.page_table) / rows.page_table_stride;
  // More rows than sequences are possible with drafts alone.
  const bool drafts = std::ssize(tokens) > slots - 1;
  const std::int64_t most = drafts ? most_with_drafts_ : slots - 1;
  const std::int64_t padding = recorded_rows(std::ssize(tokens), most) - std::ssize(tokens);
  PTRT_CHECK(rows.decodes && rows.spare_slot >= 0 && padding >= 0 && padding <= kPageTokens);
  for (std::int64_t left = padding; left > 0; left--) {
    tokens_.push_back(0);
    positions_.push_back(static_cast<std::int32_t>(left - 1));
    slots_.push_back(rows.spare_slot);
  }
  rows_ = {positions_, slots_, rows.page_table, rows.page_table_stride, rows.spare_slot, true};
}

}  // namespace ptrt
