// What one rank knows of the place where it was started: the first part of `ptrt doctor`. Every rank collects its own.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/host_cores.h"
#include "launch/host/core_share.h"
#include "launch/options/command_options.h"
#include "runtime/comm/track_comm.h"

namespace ptrt {

struct LaunchFacts {
  int rank = 0, host_rank = 0, host_ranks = 1;
  std::string host;
  int host_first = -1;    // lowest rank of those that share memory with it; -1: not known
  std::string launcher;   // "mpirun (PMIx 4.2.2), Slurm job 7"
  int launched = 1;       // processes that the launcher started together, as it says
  std::string mpi;        // "Open MPI 4.1.4"
  std::string mpi_level;  // "MPI_THREAD_MULTIPLE"; empty where MPI did not start
  std::string mpi_shmem;  // OMPI_MCA_shmem: what Open MPI shares memory by; empty: its default
  std::string program;    // program_version()
  std::vector<std::string> instruction_sets;  // best first; none: `instruction_error`
  std::string instruction_error;
  std::vector<CpuSet> allowed_cores;  // by launcher, taskset and cgroups
  int cores = 1;                      // of these the rank's share
  int threads = 1;                    // that it would run
  bool oversubscribed = false;        // the ranks that share cores run more threads than there are units
  std::int64_t memory_bytes = 0;      // that the rank may plan with
  std::string memory_source;          // of that limit; empty: physical memory
  std::int64_t shm_bytes = -1, shm_free_bytes = -1;  // of /dev/shm; 0 bytes: no limit, -1: there is none
  std::string hdf5;
  std::vector<std::string> gpus;  // UUIDs of those that CUDA shows
  std::string why_no_gpu;         // where there are none
  std::string driver;             // "535.104.05, CUDA 12.4"
  int nccl = 0;                   // 22809 for 2.28.9; 0: none
  bool nccl_windows_off = false;  // NCCL_WIN_ENABLE=0
  std::string model;              // "demo: 2 tracks x 8 layers"; empty where none was asked for or opened
  std::string model_error;        // why this rank cannot read it

  // Tells hosts apart. Containers on different nodes may have one name.
  std::pair<std::string, int> host_key() const { return {host, host_first}; }
};

// This rank's, but for the model. `cores`: its share of the host, unbound. `launched`: of the launcher. No rank waits
// for another, and nothing throws: what cannot be found out is left empty.
LaunchFacts collect_facts(const JobComm& job, const CoreShare& cores);

// As a line of an exchange. A rank of another version may lack or have more of them.
std::string to_text(const LaunchFacts& facts);
LaunchFacts parse_facts(const std::string& text);

// "2.28.9"; "none" for 0.
std::string nccl_text(int version);

}  // namespace ptrt
