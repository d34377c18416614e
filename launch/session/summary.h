// The closing table of a run, for people.
#pragma once

#include <string>

#include "runtime/serving/metrics.h"

namespace ptrt {

enum class SummaryKind { generate, score, bench };

// Several lines, each ending in a newline.
std::string summary_table(const RunSummary& summary, SummaryKind kind);

// Gathers every rank's report and sums them up; meaningful on rank 0. Collective.
class JobComm;
RunSummary gather_summary(JobComm& job, const RankReport& mine);

}  // namespace ptrt
