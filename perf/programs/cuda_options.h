// The command line of bench_cuda.
#pragma once

#include <string>
#include <vector>

#include "cuda_shape.h"

namespace ptrt {

inline constexpr std::int64_t kBenchSequences = 128;  // of a step, at most

struct BenchOptions {
  std::string json_file, config_file;
  std::int64_t ranks = 0;  // 0: one for each track
  std::vector<std::int64_t> rows = {1, 8, 16, 64, 128};
};

// Throws bad_input.
BenchOptions parse_bench_options(const std::vector<std::string>& arguments);
BenchShape shape_of(const BenchOptions& options);

}  // namespace ptrt
