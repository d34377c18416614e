// The command line (docs/SPEC.md, The command line).
#pragma once

#include <optional>
#include <string>

#include "launch/options/command_options.h"

namespace ptrt {

struct CommandLine {
  Command command;
  std::optional<int> exit_code;  // set when there is nothing to run: --help, --version (0) or bad usage (2)
  std::string out, err;          // then: what to print on the standard streams
};

// Prints nothing and touches no file.
CommandLine parse_command_line(int argc, const char* const* argv);

}  // namespace ptrt
