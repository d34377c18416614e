#include "kernels/cpu/matmul/weight_order.h"

namespace ptrt {

// Mostly the list that is expected; looking it up takes longer.
int WeightOrder::find(const std::byte* first_matrix) {
  if (last_ != kNone) {
    const int expected = lists_[static_cast<std::size_t>(last_)].next;
    if (expected != kNone && lists_[static_cast<std::size_t>(expected)].first_matrix == first_matrix)
      return expected;
  }
  if (const auto known = numbers_.find(first_matrix); known != numbers_.end()) return known->second;
  begins_.resize((lists_.size() + 1) * workers_);
  lists_.push_back({first_matrix});
  return numbers_[first_matrix] = static_cast<int>(lists_.size()) - 1;
}

int WeightOrder::begin(const std::byte* first_matrix) {
  const int list = find(first_matrix);
  // A list does not follow itself: it is in the workers' caches already.
  if (last_ != kNone && last_ != list) {
    List& last = lists_[static_cast<std::size_t>(last_)];
    last.sure = last.next == list;
    last.next = list;
  }
  last_ = list;
  return list;
}

}  // namespace ptrt
