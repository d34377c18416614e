#include "runtime/sum_job.h"

#include <algorithm>

#include "kernels/error.h"

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
  const StepHeader& mine = state_.header;
  if (other.step != mine.step || other.digest != mine.digest || other.sum != mine.sum)
    throw_failure(
        "ranks {} and {} of the replica went apart: step {} sum {} digest {:016x} here, step {} sum {} "
        "digest "
        "{:016x} there",
        comm_.rank(), rank, mine.step, mine.sum, mine.digest, other.step, other.sum, other.digest);
  if (from_first) state_.header.flags = other.flags;
  last_ready_ns_ = std::max(last_ready_ns_, offsets_.to_mine(rank, other.sent_ns));
}

}  // namespace ptrt
