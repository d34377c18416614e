// A group of ranks over MPI: messages, and memory that the ranks of one host share.
#pragma once

#include <mpi.h>

#include <memory>
#include <vector>

#include "runtime/comm/track_comm.h"

namespace ptrt {

// Takes ownership of `comm`. job_ranks[r]: rank in the job of rank r of the group. Collective.
std::unique_ptr<TrackComm> make_mpi_track_comm(MPI_Comm comm, Waiting waiting, std::vector<int> job_ranks);

}  // namespace ptrt
