// The verdict of `ptrt doctor`: what is wrong with a launch, and what to change. Pure functions of what the ranks found.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "launch/doctor/launch_facts.h"
#include "launch/doctor/measurements.h"
#include "launch/options/run_options.h"

namespace ptrt {

struct Finding {
  bool fails = true;  // a job would fail, or give wrong results; else it would run, and worse than it could
  std::string what, change;
};

// What the judge hears: from every rank, from all together, and from the command line.
struct Launch {
  std::vector<LaunchFacts> ranks;  // by rank
  Measurements measured;
  std::optional<Device> device;  // --backend
  bool share_gpu = false;
  std::int64_t replica_ranks = 1;  // of each replica; all ranks where it is not known
};

// Those that fail first.
std::vector<Finding> judge(const Launch& launch);

// Whether the ranks can be made to exchange sums: not where one of them would hang or die in it.
bool can_exchange(std::span<const LaunchFacts> ranks);

// A job's own refusal of its model and options, met by trying.
Finding refusal(const std::string& message);

// Of /dev/shm for so many ranks: what Open MPI maps for each, and the memory in which ranks add.
std::int64_t shm_needed(int host_ranks);

// "16.0 MiB, 8.0 MiB free", "no limit", "none".
std::string describe_shm(const LaunchFacts& facts);

// "ranks 0-3, 7", "rank 2"; ascending.
std::string name_ranks(std::span<const int> ranks);

}  // namespace ptrt
