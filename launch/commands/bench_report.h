// The figures of `ptrt bench` (docs/BENCH.md).
#pragma once

#include <nlohmann/json.hpp>

#include "launch/commands/bench_requests.h"
#include "launch/options/command_options.h"
#include "launch/session/model_session.h"
#include "runtime/serving/metrics.h"

namespace ptrt {

nlohmann::ordered_json bench_json(const BenchOptions& options, const ModelSession& session,
                                  const BenchCell& cell, const RunSummary& summary);

}  // namespace ptrt
