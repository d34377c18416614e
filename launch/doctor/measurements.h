// What ranks of a launch find out together: the second part of `ptrt doctor`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/comm/track_comm.h"

namespace ptrt {

// Whether rank 0's lock on a file keeps another process away, as a lock on a journal must.
enum class LockSeen : std::uint8_t {
  held,         // as it must be
  free,         // this rank got the lock too
  absent,       // this rank does not see the file
  unsupported,  // the file system has no locks
};

struct OutputTest {
  std::string path;   // as given; empty: not tested
  std::string error;  // why rank 0 cannot write there
  std::int64_t free_bytes = 0;
  std::vector<LockSeen> seen;  // by rank
};

struct AllReduceTime {
  std::int64_t bytes = 0;  // that each rank adds
  double us = 0;           // of one all-reduce over all ranks, the slowest rank's; median
};

struct Measurements {
  std::vector<double> clock_ahead_s;  // of each rank's clock of the day, against rank 0's
  std::vector<AllReduceTime> all_reduce;
  bool shares_memory = false;  // the ranks add in shared memory
  bool two_levels = false;     // those of a host do, and one of each host exchanges messages
  OutputTest output;
};

// Tries the folder `path`, or that of the file `path`; nothing is left behind. Rank 0 writes, all lock. Collective.
OutputTest test_output(JobComm& job, const std::string& path);

// Clocks, and the time of all-reduces over all ranks. Collective.
void test_exchange(JobComm& job, bool oversubscribed, Measurements& found);

}  // namespace ptrt
