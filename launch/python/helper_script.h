#pragma once

namespace ptrt {

// The files launch/python/helper_*.py, which are part of the program.
extern const char* const kHelperScript;

}  // namespace ptrt
