// Options of the commands that write and show model files. Each function adds one command and tells where its
// options go.
#pragma once

#include <CLI/CLI.hpp>

#include "launch/options/commands.h"

namespace ptrt {

CLI::App* add_init(CLI::App& app, InitOptions& options);
CLI::App* add_quantize(CLI::App& app, QuantizeOptions& options);
CLI::App* add_pack(CLI::App& app, PackOptions& options);
CLI::App* add_inspect(CLI::App& app, InspectOptions& options);

}  // namespace ptrt
