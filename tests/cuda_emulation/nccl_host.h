// What a test can do to the host twin of NCCL.
#pragma once

#include <string>

namespace ptrt::emulation {

// Every group's failure() says this from now on, as if a rank had died; empty: none does.
void set_collective_failure(const std::string& what);

}  // namespace ptrt::emulation
