// Communicators that report every wait to the watchdog.
#pragma once

#include <memory>

#include "runtime/comm/track_comm.h"
#include "runtime/comm/watchdog.h"

namespace ptrt {

// `others` names the ranks waited for.
std::unique_ptr<TrackComm> make_watched_comm(std::unique_ptr<TrackComm> inner, Watchdog& watchdog,
                                             const char* others);

// From here to the end of the job, MPI's included, the watchdog exchanges signs of life between the ranks.
// Collective; the watchdog must outlive the job. The end waits for all ranks, unless an exception ends the job.
std::unique_ptr<JobComm> make_watched_job(std::unique_ptr<JobComm> inner, Watchdog& watchdog);

}  // namespace ptrt
