// What `ptrt bench` runs: random prompts of given lengths or those of a file, and when they arrive.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/options/command_options.h"
#include "launch/session/model_session.h"
#include "runtime/requests/request.h"

namespace ptrt {

// One run of the grid.
struct BenchCell {
  std::int64_t input_len = 0, output_len = 0;  // 0: of a dataset
  std::vector<Request> requests;
};

// Every prompt length with every output length, or one cell of the dataset's text. Throws bad_input where a
// request does not fit the model's context or the KV pool, or a line of the dataset cannot be run.
std::vector<BenchCell> bench_cells(const BenchOptions& options, const ModelSession& session,
                                   const std::string& dataset);

// Random tokens; eos is ignored.
std::vector<Request> random_requests(const ModelConfig& config, std::int64_t count, std::int64_t input_len,
                                     std::int64_t output_len, std::uint64_t seed);

// Arrivals of a Poisson process at `rate` a second: gaps are exponentially distributed, the first request
// comes after one. The same for a seed on every machine. Infinity: all at the start.
void set_arrivals(std::vector<Request>& requests, double rate, std::uint64_t seed);

}  // namespace ptrt
