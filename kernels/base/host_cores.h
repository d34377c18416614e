// The cores of this host, and threads bound to them.
#pragma once

#include <string>
#include <vector>

namespace ptrt {

// Processing units (hardware threads) by the operating system's numbers, ascending. Empty: any.
using CpuSet = std::vector<int>;

// The physical cores that the calling thread may run on, at least one. Each is given as its allowed
// hardware threads (launchers, taskset and cgroups set the limits). They are in the order of the
// topology: neighbours in the list share caches and a NUMA node. The first call takes milliseconds.
std::vector<CpuSet> allowed_cores();

// The NUMA nodes next to these units, ascending; empty where the system does not tell.
std::vector<int> memory_nodes(const CpuSet& units);

// Binds the calling thread, and threads that it starts from now on, to these units; an empty set
// changes nothing. False when the system refuses, as some containers do; then nothing has changed.
bool bind_this_thread(const CpuSet& units);

// What the system calls the processor; on Arm, where it may only tell numbers, "implementer 0x41 part 0xd4f".
// Empty where it does not tell.
std::string processor_name();

}  // namespace ptrt
