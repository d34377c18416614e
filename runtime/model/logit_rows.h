// Which rows of a step have their logits computed, and which rows stay active for that.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"

namespace ptrt {

class LogitRows {
 public:
  explicit LogitRows(std::int64_t max_rows);  // of a step; no call allocates

  // The logits of `wanted` (ascending rows of the step) will be asked for. With `drop_others`, only
  // these stay active once the last layer's keys and values are appended; the step's last row where
  // none is wanted, so that every step has the same exchanges.
  void select(const StepRows& rows, std::span<const std::int32_t> wanted, bool drop_others);
  void select_all(const StepRows& rows);
  // Of a step whose halves were selected by themselves; the second begins at row `begin`. Its active
  // rows are those of the first half from row 0 on, and those of the second from `begin` on.
  void select_halves(const LogitRows& first, const LogitRows& second, std::int64_t begin);

  // From now on wanted[i] is what wanted[order[i]] was.
  void reorder(std::span<const std::int32_t> order);

  std::int64_t count() const { return std::ssize(places_); }  // of the wanted rows
  // Where wanted[first, first + count) are among the active rows.
  std::span<const std::int32_t> places(std::int64_t first, std::int64_t count) const;
  // The active rows, as long as the spans of the step's rows are valid.
  const StepRows& active() const { return active_; }
  std::int64_t active_count() const { return std::ssize(active_.positions); }
  // The rows of the step that stay active, ascending; empty where all do.
  std::span<const std::int32_t> retained() const { return retained_; }

 private:
  std::vector<std::int32_t> places_, reordered_, retained_, retained_positions_, retained_slots_;
  StepRows active_;
};

}  // namespace ptrt
