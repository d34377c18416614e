#include "kernels/cpu/weight_order.h"

namespace ptrt {

WeightOrder::List& WeightOrder::begin(const std::byte* first_matrix) {
  List& list = lists_[first_matrix];
  list.begins.resize(workers_);
  // Nothing follows itself: its workers set what they would read, and it is in their caches as it is.
  if (last_ != nullptr && last_ != &list) {
    last_->sure = last_->next == &list;
    last_->next = &list;
  }
  last_ = &list;
  return list;
}

}  // namespace ptrt
