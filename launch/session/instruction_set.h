// The instruction set that all ranks compute with: the bits of a result depend on it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/comm/track_comm.h"

namespace ptrt {

// The best one that every rank has; `ranks` are each rank's own, best first. None where no set is common to
// all ranks.
std::optional<std::string> best_common(const std::vector<std::vector<std::string>>& ranks);

// Those of this rank, best first. PTRT_SIMD_TARGET=NAME limits it to NAME and lesser sets. Throws bad_input.
std::vector<std::string> own_instruction_sets();

// Sets the best common one on this rank. Call
// it before weights are loaded and the types of products are chosen. Collective; errors are agreed on.
void agree_on_instruction_set(JobComm& job);

}  // namespace ptrt
