// Offsets between the ranks' clocks, which separate the time a rank waits for the slowest one from
// the time the bytes take.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/comm/track_comm.h"

namespace ptrt {

class ClockOffsets {
 public:
  // Collective. Ranks that run on one kernel share its clock. Between others the offset is half the
  // difference of the quickest messages in each direction, as in NTP.
  explicit ClockOffsets(TrackComm& comm);
  std::int64_t to_mine(int rank, std::int64_t ns) const {
    return ns + offsets_[static_cast<std::size_t>(rank)];
  }

 private:
  std::vector<std::int64_t> offsets_;
};

}  // namespace ptrt
