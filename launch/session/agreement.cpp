#include "launch/session/agreement.h"

#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "launch/job/process.h"

namespace ptrt {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kNamesShown = 5, kRanksShown = 3;

std::string to_text(const Facts& facts) {
  return Json(facts).dump(-1, ' ', false, Json::error_handler_t::replace);
}

// "10000.0 on rank 0 (a) and 2 more, 500000.0 on rank 1 (b)"
std::string describe_values(const std::vector<std::pair<std::string, std::string>>& values_by_rank) {
  std::vector<std::pair<std::string, std::vector<std::string>>> groups;  // in the order of their first ranks
  for (const auto& [rank, value] : values_by_rank) {
    const auto known = std::ranges::find(groups, value, [](const auto& group) { return group.first; });
    if (known != groups.end())
      known->second.push_back(rank);
    else
      groups.push_back({value, {rank}});
  }
  std::vector<std::string> texts;
  for (const auto& [value, ranks] : groups) {
    const std::size_t shown = std::min(kRanksShown, ranks.size());
    texts.push_back(
        fmt::format("{} on {}{}", value, fmt::join(ranks.begin(), ranks.begin() + shown, ", "),
                    ranks.size() > shown ? fmt::format(" and {} more", ranks.size() - shown) : ""));
  }
  return fmt::format("{}", fmt::join(texts, ", "));
}

std::string digest_of(const Facts& facts) {
  const std::string text = to_text(facts);
  return fmt::format("{:016x}", XXH3_64bits(text.data(), text.size()));
}

// Of every rank. Collective.
std::vector<RankFacts> all_facts(JobComm& job, const Facts& mine) {
  const std::vector<std::string> names = rank_names(job);
  const auto texts = job.all_gather(to_text(mine));
  std::vector<RankFacts> ranks;
  for (std::size_t r = 0; r < texts.size(); r++)
    ranks.push_back({names[r], Json::parse(texts[r]).get<Facts>()});
  return ranks;
}

// Agreed on by all ranks, which know the same `differences`.
[[noreturn]] void throw_agreed(JobComm& job, std::string_view what, const std::string& differences) {
  all_or_none(job, [&] { throw_bad_input("the ranks differ in {}: {}", what, differences); });
  throw_failure("internal error: ranks that differ in {} have agreed", what);
}

void add_facts(const Json& json, const std::string& prefix, Facts& facts) {
  for (const auto& [key, value] : json.items())
    if (value.is_object())
      add_facts(value, prefix + key + ".", facts);
    else
      facts[prefix + key] = value.dump();
}

}  // namespace

std::string describe_differences(std::span<const RankFacts> ranks, bool only_shared) {
  std::set<std::string> names;
  for (const RankFacts& rank : ranks)
    for (const auto& [name, value] : rank.facts) names.insert(name);
  // A name that some ranks lack says less.
  std::vector<std::string> texts, of_some;
  for (const std::string& name : names) {
    std::vector<std::pair<std::string, std::string>> values;
    bool everywhere = true;
    for (const RankFacts& rank : ranks) {
      const auto found = rank.facts.find(name);
      everywhere &= found != rank.facts.end();
      if (found != rank.facts.end())
        values.emplace_back(rank.rank, found->second);
      else if (!only_shared)
        values.emplace_back(rank.rank, "none");
    }
    if (std::ranges::all_of(values, [&](const auto& v) { return v.second == values.front().second; }))
      continue;
    (everywhere ? texts : of_some).push_back(fmt::format("{}: {}", name, describe_values(values)));
  }
  texts.insert(texts.end(), of_some.begin(), of_some.end());
  const std::size_t shown = std::min(kNamesShown, texts.size());
  return fmt::format("{}{}",
                     fmt::join(texts.begin(), texts.begin() + static_cast<std::ptrdiff_t>(shown), "; "),
                     texts.size() > shown ? fmt::format("; and {} more", texts.size() - shown) : "");
}

std::string describe_differences(const std::map<std::int64_t, std::vector<RankFacts>>& replicas) {
  for (const auto& [number, ranks] : replicas)
    if (const std::string text = describe_differences(ranks); !text.empty())
      return fmt::format("in replica {}, {}", number, text);
  return "";
}

void agree_on(JobComm& job, std::string_view what, const Facts& mine) {
  if (job.size() == 1) return;
  if (!all_equal(job, digest_of(mine))) throw_differences(job, what, mine);
}

void throw_differences(JobComm& job, std::string_view what, const Facts& mine, bool only_shared) {
  throw_agreed(job, what, describe_differences(all_facts(job, mine), only_shared));
}

void agree_in_replica(JobComm& job, std::int64_t replica, std::string_view what, const Facts& mine) {
  if (job.size() == 1) return;
  std::vector<std::int64_t> replica_of;
  std::map<std::int64_t, std::string> digests;
  bool same = true;
  for (const std::string& text : job.all_gather(fmt::format("{} {}", replica, digest_of(mine)))) {
    std::size_t end = 0;
    replica_of.push_back(std::stoll(text, &end));
    same &= digests.try_emplace(replica_of.back(), text.substr(end)).first->second == text.substr(end);
  }
  if (same) return;
  std::map<std::int64_t, std::vector<RankFacts>> replicas;
  std::vector<RankFacts> ranks = all_facts(job, mine);
  for (std::size_t r = 0; r < ranks.size(); r++) replicas[replica_of[r]].push_back(std::move(ranks[r]));
  throw_agreed(job, what, describe_differences(replicas));
}

std::string rank_name(const JobComm& job) {
  if (job.size() == 1) return "this rank";
  return fmt::format("rank {} ({})", job.rank(), job.host());
}

std::vector<std::string> rank_names(JobComm& job) {
  return job.all_gather(rank_name(job));
}

void agree_on_requests(JobComm& job, std::span<const Request> requests) {
  if (job.size() == 1) return;
  std::uint64_t digest = 0;
  const auto add = [&](const void* bytes, std::size_t size) {
    digest = XXH3_64bits_withSeed(bytes, size, digest);
  };
  for (const Request& r : requests) {
    add(r.tokens.data(), r.tokens.size() * sizeof(r.tokens[0]));
    for (const std::string& stop : r.stop) add(stop.data(), stop.size());
    const double numbers[] = {static_cast<double>(r.line),
                              static_cast<double>(r.max_tokens),
                              static_cast<double>(r.score_from),
                              r.temperature,
                              static_cast<double>(r.top_k),
                              r.top_p,
                              r.arrival_s};
    add(numbers, sizeof(numbers));
    add(&r.seed, sizeof(r.seed));
  }
  agree_on(job, "the tokens of the requests",
           {{"requests", fmt::format("{} with the digest {:016x}", requests.size(), digest)}});
}

Facts facts_of(const ModelConfig& config) {
  Facts facts;
  add_facts(Json::parse(to_json(config)), "", facts);
  return facts;
}

}  // namespace ptrt
