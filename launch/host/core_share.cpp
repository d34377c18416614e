#include "launch/host/core_share.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "runtime/job/launcher.h"

namespace ptrt {
namespace {

std::set<int> units_of(const std::vector<CpuSet>& cores) {
  std::set<int> units;
  for (const CpuSet& core : cores) units.insert(core.begin(), core.end());
  return units;
}

bool overlap(const std::set<int>& a, const std::set<int>& b) {
  return std::ranges::any_of(a, [&](int unit) { return b.contains(unit); });
}

// The ranks whose cores overlap with those of `mine`, directly or through others, in order, `mine` included.
struct Neighbours {
  std::vector<std::size_t> ranks;
  std::set<int> units;  // of all of them
};

Neighbours neighbours_of(std::span<const HostRank> ranks, std::size_t mine) {
  Neighbours found{{mine}, units_of(ranks[mine].cores)};
  for (bool grown = true; grown;) {
    grown = false;
    for (std::size_t r = 0; r < ranks.size(); r++) {
      const std::set<int> units = units_of(ranks[r].cores);
      if (std::ranges::count(found.ranks, r) || !overlap(units, found.units)) continue;
      found.ranks.push_back(r);
      found.units.insert(units.begin(), units.end());
      grown = true;
    }
  }
  std::ranges::sort(found.ranks);
  return found;
}

// One line a rank: threads, their limit, then its cores as "0,4 1,5 …".
std::string to_text(const HostRank& rank) {
  std::string text = fmt::format("{} {}", rank.threads, rank.most_threads);
  for (const CpuSet& core : rank.cores) text += fmt::format(" {}", fmt::join(core, ","));
  return text;
}

HostRank parse_host_rank(const std::string& text) {
  HostRank rank;
  std::istringstream in(text);
  in >> rank.threads >> rank.most_threads;
  for (std::string core; in >> core;) {
    rank.cores.emplace_back();
    std::istringstream units(core);
    for (std::string unit; std::getline(units, unit, ',');) rank.cores.back().push_back(std::stoi(unit));
  }
  return rank;
}

}  // namespace

std::vector<CpuSet> CoreShare::worker_cores() const {
  if (!bound) return {};
  return {cores.begin(), cores.begin() + threads};
}

CpuSet CoreShare::units() const {
  if (!bound) return {};
  const std::set<int> all = units_of(cores);
  return {all.begin(), all.end()};
}

std::string CoreShare::describe() const {
  if (bound) return "bound to cores";
  if (refused) return "not bound: not permitted";
  return oversubscribed ? "not bound: more threads than cores" : "not bound";
}

CoreShare divide_cores(std::span<const HostRank> ranks, std::size_t mine) {
  const Neighbours neighbours = neighbours_of(ranks, mine);
  const std::size_t sharers = neighbours.ranks.size();
  const std::vector<CpuSet>& cores = ranks[mine].cores;
  const bool alike =
      std::ranges::all_of(neighbours.ranks, [&](std::size_t r) { return ranks[r].cores == cores; });
  const auto default_threads = [&](std::size_t r) {
    const int share = std::max<int>(1, static_cast<int>(ranks[r].cores.size() / sharers));
    return ranks[r].most_threads > 0 ? std::min(share, ranks[r].most_threads) : share;
  };
  CoreShare share;
  share.threads = ranks[mine].threads > 0 ? ranks[mine].threads : default_threads(mine);
  std::size_t all_threads = 0;
  for (const std::size_t r : neighbours.ranks)
    all_threads += static_cast<std::size_t>(ranks[r].threads > 0 ? ranks[r].threads : default_threads(r));
  share.oversubscribed = all_threads > neighbours.units.size();
  share.cores = cores;
  if (!alike || cores.size() < sharers) return share;

  const auto place =
      static_cast<std::size_t>(std::ranges::find(neighbours.ranks, mine) - neighbours.ranks.begin());
  const auto at = [&](std::size_t p) {
    return cores.begin() + static_cast<std::ptrdiff_t>(p * cores.size() / sharers);
  };
  share.cores.assign(at(place), at(place + 1));
  share.bound = static_cast<std::size_t>(share.threads) <= share.cores.size();
  return share;
}

CoreShare take_core_share(JobComm& job, int threads, bool bind) {
  std::vector<HostRank> ranks;
  for (const std::string& text :
       job.all_gather_on_host(to_text({allowed_cores(), threads, slurm_cpus_per_task().value_or(0)})))
    ranks.push_back(parse_host_rank(text));
  CoreShare share = divide_cores(ranks, static_cast<std::size_t>(job.host_rank()));
  share.bound &= bind && job.size() > 1;
  share.refused = share.bound && !bind_this_thread(share.cores.front());
  share.bound &= !share.refused;
  return share;
}

}  // namespace ptrt
