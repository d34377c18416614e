// What all ranks of a job must have in common, compared before they work on it: ranks may have been started with
// different options, or have copies of the files of their own.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model_io/config/model_config.h"
#include "runtime/comm/track_comm.h"
#include "runtime/requests/request.h"

namespace ptrt {

// Names and values, as a message shows them.
using Facts = std::map<std::string, std::string>;

struct RankFacts {
  std::string rank;  // "rank 1 (host b)"
  Facts facts;
};

// "rope_theta: 10000.0 on rank 0 (a), 500000.0 on rank 1 (b); …": the first few names whose values differ,
// those that every rank has first. A rank without a name that others have differs from them, unless
// `only_shared`. Empty where all agree.
std::string describe_differences(std::span<const RankFacts> ranks, bool only_shared = false);

// "in replica 1, GPU: …": of the first replica whose own ranks differ.
std::string describe_differences(const std::map<std::int64_t, std::vector<RankFacts>>& replicas);

// Throws bad_input on every rank, "the ranks differ in WHAT: …", where their facts are not the same. Costs one
// exchange of a few bytes where they are. Collective; the error is agreed on.
void agree_on(JobComm& job, std::string_view what, const Facts& mine);
// The same between the ranks of each replica; replicas may differ. No rank passes while another replica's ranks differ.
void agree_in_replica(JobComm& job, std::int64_t replica, std::string_view what, const Facts& mine);
// agree_on() where the ranks already know that they differ.
[[noreturn]] void throw_differences(JobComm& job, std::string_view what, const Facts& mine,
                                    bool only_shared = false);

// "rank 1 (host b)", or "this rank" in a job of one.
std::string rank_name(const JobComm& job);
// Of every rank. Collective.
std::vector<std::string> rank_names(JobComm& job);

// The requests as each rank has made them of the text that all have: tokenizers rest on libraries of the host.
// Collective; the error is agreed on.
void agree_on_requests(JobComm& job, std::span<const Request> requests);

// The keys of a configuration; those of an object within it as "fusion.op".
Facts facts_of(const ModelConfig& config);

}  // namespace ptrt
