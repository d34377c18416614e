// What the ways to add up between CPU ranks have in common.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/comm/clock_offsets.h"
#include "runtime/comm/track_comm.h"
#include "runtime/sync/reduction.h"

namespace ptrt {

// out = scale · tree(parts of all ranks) (+ add_to), `count` values.
struct SumJob {
  std::span<const float* const> local;
  std::int64_t count;
  float scale;
  const float* add_to;  // may be null or out
  float* out;           // may be one of the parts
};

// Values that each of `ranks` ranks adds; the last ranks may have fewer, or none.
inline std::int64_t slice_width(std::int64_t count, int ranks) {
  return (count + ranks - 1) / ranks;
}

// The headers of one sum: this rank's, and what those of others say.
class HeaderCheck {
 public:
  HeaderCheck(TrackComm& comm, StepState& state);

  void begin(std::uint64_t sum, std::int64_t now);
  // What this rank sends: its header, with the flags and the latest time of those heard so far.
  StepHeader outgoing() const;
  // Throws when the ranks went apart. Flags are taken over from `rank` if they come from the first rank.
  void take(int rank, const StepHeader& other, bool from_first);
  // When the slowest rank heard of had its parts ready, on this rank's clock.
  std::int64_t last_ready_ns() const { return last_ready_ns_; }

 private:
  TrackComm& comm_;
  StepState& state_;
  ClockOffsets offsets_;
  std::int64_t last_ready_ns_ = 0;
};

}  // namespace ptrt
