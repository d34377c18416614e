// Fault injection for the host implementation of the NCCL collectives.
#pragma once

#include <string>

namespace ptrt::emulation {

// From now on failure() of every group returns `what`, as if a rank had died; empty: no failure.
void set_collective_failure(const std::string& what);

}  // namespace ptrt::emulation
