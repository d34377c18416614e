// The command line (docs/SPEC.md, The command line).
#pragma once

#include <optional>
#include <variant>

#include "launch/options/commands.h"

namespace ptrt {

using Command = std::variant<std::monostate, BatchOptions, BenchOptions, InitOptions, QuantizeOptions,
                             PackOptions, InspectOptions, PlanOptions>;

struct CommandLine {
  Command command;
  std::optional<int> exit_code;  // set when there is nothing to run: --help, --version (0) or bad usage (2)
};

// Prints help and complaints only when `may_print` (rank 0).
CommandLine parse_command_line(int argc, char** argv, bool may_print);

// "64", "512K", "3M", "2G": bytes, powers of 1024. Throws bad_input that names the option.
std::int64_t parse_size(const std::string& option, const std::string& text);

}  // namespace ptrt
