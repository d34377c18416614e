#include "runtime/sync/sum_job.h"

#include <algorithm>

namespace ptrt {

HeaderCheck::HeaderCheck(TrackComm& comm, StepState& state) : comm_(comm), state_(state), offsets_(comm) {}

void HeaderCheck::begin(std::uint64_t sum, std::int64_t now) {
  state_.header.sum = sum;
  last_ready_ns_ = now;
}

StepHeader HeaderCheck::outgoing() const {
  StepHeader header = state_.header;
  header.sent_ns = last_ready_ns_;
  return header;
}

void HeaderCheck::take(int rank, const StepHeader& other, bool from_first) {
  check_header(state_.header, comm_.rank(), other, rank);
  if (from_first) state_.header.flags = other.flags;
  last_ready_ns_ = std::max(last_ready_ns_, offsets_.to_mine(rank, other.sent_ns));
}

}  // namespace ptrt
