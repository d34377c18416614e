// The subcommands of `ptrt`: options as parsed, and the function that runs each. All throw ptrt::Error.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "kernels/tensor.h"

namespace ptrt {

class Process;

struct InitOptions {
  std::string config_path;  // CONFIG.json
  std::string output;       // model file
  std::uint64_t seed = 0;
  DType dtype = DType::bfloat16;
  bool split = false;
};

struct InspectOptions {
  std::string model;
  bool json = false;
  bool verify = false;
  std::optional<int> ranks;  // show the placement over that many ranks (default: one a track)
};

void run_init(const InitOptions& options);
void run_inspect(const InspectOptions& options);

}  // namespace ptrt
