// The command line (docs/SPEC.md, The command line).
#pragma once

#include <map>
#include <optional>
#include <string>

#include "launch/options/command_options.h"

namespace ptrt {

struct CommandLine {
  Command command;
  std::optional<int> exit_code;  // set when there is nothing to run: --help, --version (0) or bad usage (2)
  std::string out, err;          // then: what to print on the standard streams
  // What all ranks of a job must have been given alike, by the options' names: defaults too, but no files,
  // nothing that is a rank's own affair (its share of a host) and nothing that only rank 0 does.
  std::map<std::string, std::string> common;
};

// Prints nothing and touches no file.
CommandLine parse_command_line(int argc, const char* const* argv);

}  // namespace ptrt
