// Which cores of the host a rank uses, how many threads it runs on them, and whether they are bound.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/host_cores.h"
#include "runtime/comm/track_comm.h"

namespace ptrt {

// One rank of a host before the cores are divided.
struct HostRank {
  std::vector<CpuSet> cores;  // that launcher, taskset and cgroups allow
  int threads = 0;            // asked for; 0: one a core of its share
  int most_threads = 0;       // then: no more than the launcher gives a task; 0: it does not say
};

struct CoreShare {
  std::vector<CpuSet> cores;  // this rank's part of the host's cores
  int threads = 1;
  bool bound = false;  // worker w runs on cores[w] alone
  // The ranks that share these cores run more threads than there are processing units: no thread should spin.
  bool oversubscribed = false;
  bool refused = false;  // the system did not let threads be bound

  // Where each worker runs; empty when not bound.
  std::vector<CpuSet> worker_cores() const;
  // All units of the share, for threads other than the workers; empty when not bound.
  CpuSet units() const;
  // A phrase such as "bound to cores".
  std::string describe() const;
};

// Ranks that may run on the same cores divide them in the order of `ranks`, consecutive cores each, so that
// no NUMA node is split where the numbers divide. Ranks that a launcher has given separate cores keep them.
// A rank is bound when each of its threads has a core of its own.
CoreShare divide_cores(std::span<const HostRank> ranks, std::size_t mine);

// Agrees with the other ranks on this host and, with `bind`, binds the calling thread, which is worker 0.
// Call it before any large allocation: memory belongs to the NUMA node of the thread that first touches it.
// A job of one rank is not bound: the system moves its threads away from other work on the machine.
// Collective.
CoreShare take_core_share(JobComm& job, int threads, bool bind);

}  // namespace ptrt
