// A group of which only this rank, the first, exists: every message takes the time of a modelled
// link, and brings this rank's own bytes instead of the others'. For measuring one rank's share of
// a larger job; the results have no meaning.
#pragma once

#include <memory>

#include "kernels/device_collectives.h"
#include "runtime/comm/track_comm.h"

namespace ptrt {

std::unique_ptr<TrackComm> make_emulated_comm(int size, const LinkModel& link);

}  // namespace ptrt
