// Values of some lines that follow each other, of which any can be taken out. Cheap where the first is taken.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <utility>

#include "kernels/base/error.h"

namespace ptrt {

template <typename T>
class LineWindow {
 public:
  struct Entry {
    std::int64_t line = 0;
    std::optional<T> value;  // none: taken out
  };

  bool empty() const { return size_ == 0; }
  std::int64_t size() const { return size_; }
  // Of those that are there; there must be one.
  std::int64_t first() const { return entries_.front().line; }
  // Lines ascend.
  void add(std::int64_t line, T value) {
    PTRT_CHECK(entries_.empty() || line > entries_.back().line);
    entries_.push_back({line, std::move(value)});
    size_++;
  }
  const T* find(std::int64_t line) const {
    const auto at = std::ranges::lower_bound(entries_, line, {}, &Entry::line);
    return at != entries_.end() && at->line == line && at->value ? &*at->value : nullptr;
  }
  T take(std::int64_t line) {
    const auto at = std::ranges::lower_bound(entries_, line, {}, &Entry::line);
    PTRT_CHECK(at != entries_.end() && at->line == line && at->value);
    T value = std::move(*at->value);
    at->value.reset();
    size_--;
    while (!entries_.empty() && !entries_.front().value) entries_.pop_front();
    return value;
  }
  // In order, those taken out since the first included.
  const std::deque<Entry>& entries() const { return entries_; }

 private:
  std::deque<Entry> entries_;
  std::int64_t size_ = 0;
};

}  // namespace ptrt
