// Signs of life over MPI.
#pragma once

#include <mpi.h>

#include <memory>

#include "runtime/job/heartbeat.h"

namespace ptrt {

// Takes a communicator of all ranks of the job, which is used for nothing else and left to MPI's own end: freeing
// it would wait for the other ranks.
std::unique_ptr<PulseComm> make_mpi_pulse_comm(MPI_Comm comm);

}  // namespace ptrt
