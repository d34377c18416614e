// The figures of `ptrt bench` as JSON and CSV (docs/BENCH.md).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/commands/bench_requests.h"
#include "launch/session/model_session.h"
#include "runtime/serving/metrics.h"

namespace ptrt {

nlohmann::ordered_json bench_json(const BenchOptions& options, ModelSession& session, const BenchCell& cell,
                                  const RunSummary& summary);

// One run: its object; several: {"runs": [...]}.
void write_json(const std::string& path, const std::vector<nlohmann::ordered_json>& runs);
// A line of names, then one a run; nested figures as name_p50.
void write_csv(const std::string& path, const std::vector<nlohmann::ordered_json>& runs);

}  // namespace ptrt
