// The job's ranks over MPI.
#pragma once

#include <memory>

#include "runtime/comm/track_comm.h"

namespace ptrt {

// Starts MPI; the destructor calls MPI_Finalize, unless an exception ends the job. Call once,
// before any thread starts but the watchdog's.
std::unique_ptr<JobComm> make_mpi_job_comm();

// Ends this process and, where MPI runs, the job on every rank, whatever the state of MPI. By any thread.
[[noreturn]] void end_job_now(int exit_code);

std::string mpi_library_version();
// What MPI gave this process, as "MPI_THREAD_MULTIPLE"; empty before it starts.
std::string mpi_thread_level();

}  // namespace ptrt
