#pragma once

namespace ptrt {

// helper.py, which is part of the program.
extern const char* const kHelperScript;

}  // namespace ptrt
