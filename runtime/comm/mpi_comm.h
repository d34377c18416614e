// The job's ranks over MPI.
#pragma once

#include <memory>

#include "runtime/comm/track_comm.h"

namespace ptrt {

// True when a launcher (mpirun, srun with PMIx or PMI) started this process as one of several
// ranks.
bool started_by_mpi_launcher();

// Starts MPI; the destructor calls MPI_Finalize, unless an exception ends the job. Call once,
// before any thread starts.
std::unique_ptr<JobComm> make_mpi_job_comm();

std::string mpi_library_version();

}  // namespace ptrt
