// The header of a step, which ranks compare so that diverged ranks abort the job.
#pragma once

#include <cstdint>

#include "runtime/comm/clock_offsets.h"
#include "runtime/comm/track_comm.h"

namespace ptrt {

inline constexpr std::uint64_t kStopFlag = 1;  // end in order after this step
inline constexpr std::uint64_t kLastFlag = 2;  // the replica will get no more requests

// Precedes the values in every message between hosts' memories, and is exchanged once a step where
// devices communicate directly. Ranks compare headers; diverged ranks abort the job. Anything that
// depends on a clock or a signal is decided by the replica's first rank and travels in `flags`.
struct StepHeader {
  std::uint64_t step = 0;
  std::uint64_t digest = 0;  // of every token sampled so far
  std::uint64_t sum = 0;     // number of this sum within the step, for its AllReduce
  std::uint64_t flags = 0;   // not compared
  std::int64_t sent_ns = 0;  // on the sender's clock; not compared
};

// What a rank's AllReduces share: the header of the current step. A rank adopts the flags of the
// first rank of the group it receives from. With tensor parallelism the flags of the replica's
// first rank reach every rank by the end of the step: first within its track's group, then within
// the fusion's.
struct StepState {
  StepHeader header;
};

// Throws when the headers of two ranks differ in step, sum or digest.
void check_step_header(const StepHeader& mine, int rank, const StepHeader& other, int other_rank);

// Checks the headers of one sum at a time, and measures how long this rank waited for the others.
class StepConsistency {
 public:
  // Collective (ClockOffsets).
  StepConsistency(TrackComm& comm, StepState& state);

  // Starts sum number `sum` of the step, or resumes it: the parts known so far, this rank's at
  // first, are ready at `now`, on its own clock.
  void begin(std::uint64_t sum, std::int64_t now);
  std::uint64_t sum() const { return state_.header.sum; }
  // The header to send: with the flags, and the latest time, of the headers received so far.
  StepHeader outgoing() const;
  // Throws when `rank` has diverged. Adopts its flags where `from_first` says that they are the
  // first rank's.
  void receive(int rank, const StepHeader& other, bool from_first);
  // When the slowest rank received from had its parts ready, on this rank's clock.
  std::int64_t last_ready_ns() const { return last_ready_ns_; }

 private:
  TrackComm& comm_;
  StepState& state_;
  ClockOffsets offsets_;
  std::int64_t last_ready_ns_ = 0;
};

}  // namespace ptrt
