// A group of which only this rank, the first, is there: every message takes as long as a link that is told
// of, and brings this rank's own bytes in the others' place. For measuring one rank's share of a larger job;
// what is computed with it has no meaning.
#pragma once

#include <memory>

#include "kernels/device_collectives.h"
#include "runtime/comm/track_comm.h"

namespace ptrt {

std::unique_ptr<TrackComm> make_emulated_comm(int size, const LinkModel& link);

}  // namespace ptrt
