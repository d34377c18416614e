#include "runtime/sync/step_header.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace ptrt {

void check_step_header(const StepHeader& mine, int rank, const StepHeader& other, int other_rank) {
  if (other.step == mine.step && other.digest == mine.digest && other.sum == mine.sum) return;
  throw_failure(
      "ranks {} and {} of the replica diverged: step {} sum {} digest {:016x} here, step {} sum {} digest "
      "{:016x} there",
      rank, other_rank, mine.step, mine.sum, mine.digest, other.step, other.sum, other.digest);
}

StepConsistency::StepConsistency(TrackComm& comm, StepState& state)
    : comm_(comm), state_(state), offsets_(comm) {}

void StepConsistency::begin(std::uint64_t sum, std::int64_t now) {
  state_.header.sum = sum;
  last_ready_ns_ = now;
}

StepHeader StepConsistency::outgoing() const {
  StepHeader header = state_.header;
  header.sent_ns = last_ready_ns_;
  return header;
}

void StepConsistency::receive(int rank, const StepHeader& other, bool from_first) {
  check_step_header(state_.header, comm_.rank(), other, rank);
  if (from_first) state_.header.flags = other.flags;
  last_ready_ns_ = std::max(last_ready_ns_, offsets_.to_mine(rank, other.sent_ns));
}

}  // namespace ptrt
