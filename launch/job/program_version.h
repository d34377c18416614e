// Which program this is.
#pragma once

#include <string>

namespace ptrt {

// "0.9.0 (build 1a2b3c4d5e6f)": the version and the linker's identifier of this very executable.
std::string program_version();

}  // namespace ptrt
