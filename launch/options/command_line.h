// The command line (docs/SPEC.md, The command line).
#pragma once

#include <optional>

#include "launch/options/command_options.h"

namespace ptrt {

struct CommandLine {
  Command command;
  std::optional<int> exit_code;  // set when there is nothing to run: --help, --version (0) or bad usage (2)
};

// Prints help and error messages only when `may_print` (rank 0).
CommandLine parse_command_line(int argc, const char* const* argv, bool may_print);

}  // namespace ptrt
