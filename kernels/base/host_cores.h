// The cores of this host, and threads bound to them.
#pragma once

#include <vector>

namespace ptrt {

// Processing units (hardware threads) by the operating system's numbers, ascending. Empty: any.
using CpuSet = std::vector<int>;

// The physical cores that the calling thread may run on, never none: each as those of its hardware threads
// that are allowed (launchers, taskset and cgroups set the limits). In the order of the topology: neighbours
// in the list share caches and a NUMA node. Takes milliseconds on the first call.
std::vector<CpuSet> allowed_cores();

// From now on the calling thread, and threads that it starts, run on these units alone; an empty set changes
// nothing. False when the system refuses, as some containers do; then nothing has changed.
bool bind_this_thread(const CpuSet& units);

}  // namespace ptrt
