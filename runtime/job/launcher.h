// What the launcher's environment tells this process about its job, before or without MPI.
#pragma once

#include <optional>
#include <string>

namespace ptrt {

// True when a launcher (mpirun, srun with PMIx or PMI) started this process as a rank of an MPI job.
bool started_by_mpi_launcher();

struct LaunchedTask {
  std::optional<int> rank, size;  // empty where the environment does not have them
};

// This process among those that the innermost launcher started together: mpirun, else PMI's process
// manager, else Slurm's step. SLURM_NTASKS is no ground: a batch script has it too, and runs once.
LaunchedTask launched_task();

// CPUs that Slurm gives each task of the job (--cpus-per-task), where this process runs in a job of Slurm and
// the job says so.
std::optional<int> slurm_cpus_per_task();

// For people: "mpirun (PMIx 4.2.2), Slurm job 7", "srun, Slurm job 7"; "no launcher" for a process on its own.
std::string describe_launcher();

// A name of the job that this process was started in, the same on all its ranks and no other's on this host.
std::string launched_job();

// As messages name this process before MPI tells: "rank 2 of 4 (host)"; empty without a launcher.
std::string launched_name();

// The other processes that the launcher started on this host and that are stopped (SIGSTOP), for a message while
// MPI cannot tell: "rank 2 (host), which is stopped,"; empty where there are none, or the system does not say.
std::string stopped_ranks_here();

}  // namespace ptrt
