// The instruction set that all ranks compute with: the bits of a result hang on it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/comm/track_comm.h"

namespace ptrt {

// The best one that every rank has; `ranks` are each rank's own, best first. None where no one is common to
// all.
std::optional<std::string> best_common(const std::vector<std::vector<std::string>>& ranks);

// Sets the best one of all ranks on this one. PTRT_SIMD_TARGET=NAME limits this rank to NAME and lesser ones.
// Before weights are loaded and types of products chosen. Collective; errors are agreed on.
void agree_on_instruction_set(JobComm& job);

}  // namespace ptrt
