// How much memory of its host a process may plan with: the least of all limits that hold for it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace ptrt {

// Where the limits are read; tests point it at files of their own.
struct MemorySources {
  std::string cgroups = "/proc/self/cgroup", mounts = "/proc/self/mountinfo";
  std::function<const char*(const char*)> environment;     // none: that of this process
  std::optional<std::int64_t> physical_bytes, swap_bytes;  // none: of this host
  // Address space that this process may still take, RLIMIT_AS; none: asks the system.
  std::function<std::optional<std::int64_t>()> address_space;
};

struct MemoryLimit {
  std::int64_t bytes = 0;
  // What sets it: "the memory limit of the cgroup /job_7", "SLURM_MEM_PER_NODE"; empty for physical memory.
  std::string source = {};
  std::int64_t swap_bytes = 0;  // beyond physical memory, where that is the limit
  // It counts mapped files too: RLIMIT_AS. All other limits count what cannot be reclaimed.
  bool counts_mapped_files = false;
};

// Of a process that shares the host with `ranks` - 1 others like it. All of them together have
// * physical memory,
// * memory.max (cgroup v2) or memory.limit_in_bytes (v1) of their cgroup and of every one around it,
// * in a Slurm job SLURM_MEM_PER_NODE, or SLURM_MEM_PER_CPU times SLURM_CPUS_ON_NODE;
// RLIMIT_AS is each process's own. What cannot be read is no limit.
MemoryLimit memory_limit_of_rank(int ranks, const MemorySources& sources = {});

}  // namespace ptrt
