// What a run prints: a line before it starts, a table when it ends.
#pragma once

#include <string>

#include "runtime/serving/metrics.h"

namespace ptrt {

class JobComm;
class ModelSession;

// One line, or two on a GPU, without the last newline: model, placement, threads, memory. After load().
std::string describe_run(const ModelSession& session);
// A line that says that other ranks are emulated, and how; empty where none are.
std::string emulation_notice(const ModelSession& session);

enum class SummaryKind { generate, score, bench };

// Several lines, each ending in a newline.
std::string summary_table(const RunSummary& summary, SummaryKind kind);

// Sums up the reports of all ranks; meaningful on rank 0. Collective.
RunSummary gather_summary(JobComm& job, const RankReport& mine);

}  // namespace ptrt
