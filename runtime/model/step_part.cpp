#include "runtime/model/step_part.h"

#include <algorithm>

namespace ptrt {

Tensor rows_of(const Tensor& all, std::int64_t first, std::int64_t count) {
  const std::int64_t bytes = first * all.width * static_cast<std::int64_t>(size_of(all.dtype));
  return {
      static_cast<std::byte*>(all.data) + bytes, all.tracks, count, all.width, all.track_stride, all.dtype};
}

StepPart::StepPart(std::int64_t max_rows) : logit_rows_(max_rows) {
  wanted_.reserve(static_cast<std::size_t>(max_rows));
}

void StepPart::select(const StepRows& step, std::int64_t first, std::int64_t count,
                      std::span<const std::int32_t> wanted, bool drop_others) {
  first_ = first;
  rows_ = step;
  rows_.positions = step.positions.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
  rows_.slots = step.slots.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
  wanted_.clear();
  for (const std::int32_t row : wanted)
    if (row >= first && row < first + count) wanted_.push_back(row - static_cast<std::int32_t>(first));
  logit_rows_.select(rows_, wanted_, drop_others);
}

}  // namespace ptrt
