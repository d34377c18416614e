// The functions that run the subcommands of `ptrt`. All throw ptrt::Error.
#pragma once

#include "launch/options/command_options.h"

namespace ptrt {

class JobComm;

// Collective.
void run_batch(const BatchOptions& options, JobComm& job);
void run_bench(const BenchOptions& options, JobComm& job);
// On one rank.
void run_init(const InitOptions& options);
void run_quantize(const QuantizeOptions& options);
void run_pack(const PackOptions& options);
void run_inspect(const InspectOptions& options);
void run_plan(const PlanOptions& options);

}  // namespace ptrt
