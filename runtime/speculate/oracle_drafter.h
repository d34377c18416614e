// Drafts of known outputs, of which a given share is right: for tests, and to measure what an acceptance is worth.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "runtime/speculate/drafter.h"

namespace ptrt {

// By Request::line, the tokens that the request's sample 0 gives.
using KnownOutputs = std::map<std::int64_t, std::vector<std::int32_t>>;

// `drafts` tokens a step, each right with probability `acceptance`, by a hash of its request and position; else it
// is another token, below vocab_size. None for requests whose output is not known.
DrafterFactory make_oracle_drafters(std::shared_ptr<const KnownOutputs> known, std::int64_t drafts,
                                    double acceptance, std::int64_t vocab_size);

}  // namespace ptrt
