#include "runtime/model/logit_rows.h"

#include <numeric>

#include "kernels/base/error.h"

namespace ptrt {

LogitRows::LogitRows(std::int64_t max_rows) {
  for (std::vector<std::int32_t>* list :
       {&places_, &reordered_, &retained_, &retained_positions_, &retained_slots_})
    list->reserve(static_cast<std::size_t>(max_rows));
}

void LogitRows::select(const StepRows& rows, std::span<const std::int32_t> wanted, bool drop_others) {
  places_.assign(wanted.begin(), wanted.end());
  retained_.clear();
  active_ = rows;
  const auto last = static_cast<std::int32_t>(rows.positions.size()) - 1;
  if (wanted.empty()) wanted = {&last, 1};
  if (!drop_others || wanted.size() == rows.positions.size()) return;
  retained_.assign(wanted.begin(), wanted.end());
  retained_positions_.clear();
  retained_slots_.clear();
  for (const std::int32_t row : retained_) {
    retained_positions_.push_back(rows.positions[static_cast<std::size_t>(row)]);
    retained_slots_.push_back(rows.slots[static_cast<std::size_t>(row)]);
  }
  std::iota(places_.begin(), places_.end(), 0);
  active_ = {retained_positions_, retained_slots_, rows.page_table, rows.page_table_stride};
}

void LogitRows::select_all(const StepRows& rows) {
  places_.resize(rows.positions.size());
  std::iota(places_.begin(), places_.end(), 0);
  retained_.clear();
  active_ = rows;
}

void LogitRows::select_halves(const LogitRows& first, const LogitRows& second, std::int64_t begin) {
  places_ = first.places_;
  for (const std::int32_t place : second.places_) places_.push_back(place + static_cast<std::int32_t>(begin));
  retained_.clear();
  active_ = {};
}

void LogitRows::reorder(std::span<const std::int32_t> order) {
  PTRT_CHECK(order.size() == places_.size());
  reordered_.resize(order.size());
  for (std::size_t i = 0; i < order.size(); i++) reordered_[i] = places_[static_cast<std::size_t>(order[i])];
  places_.swap(reordered_);
}

std::span<const std::int32_t> LogitRows::places(std::int64_t first, std::int64_t count) const {
  PTRT_CHECK(count >= 1 && first + count <= this->count());
  return std::span(places_).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
}

}  // namespace ptrt
