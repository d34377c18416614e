// What to add to another rank's clock to have this rank's: so that the time a rank waited for the slowest one
// can be told from the time the bytes took.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/comm/track_comm.h"

namespace ptrt {

class ClockOffsets {
 public:
  // Collective. Ranks that run on one kernel share its clock; between others the offset is half the
  // difference of the quickest messages either way, as NTP has it.
  explicit ClockOffsets(TrackComm& comm);
  std::int64_t to_mine(int rank, std::int64_t ns) const {
    return ns + offsets_[static_cast<std::size_t>(rank)];
  }

 private:
  std::vector<std::int64_t> offsets_;
};

}  // namespace ptrt
