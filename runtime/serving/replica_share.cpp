#include "runtime/serving/replica_share.h"

#include <algorithm>

namespace ptrt {

std::vector<std::int64_t> requests_of_replica(std::span<const Request> requests,
                                              std::span<const std::int64_t> pending, std::int64_t replicas,
                                              std::int64_t replica) {
  std::vector<std::int64_t> by_cost(pending.begin(), pending.end());
  if (replicas == 1) return by_cost;
  const auto cost = [&](std::int64_t i) { return requests[static_cast<std::size_t>(i)].cached_tokens(); };
  std::ranges::stable_sort(by_cost, [&](std::int64_t a, std::int64_t b) { return cost(a) > cost(b); });
  std::vector<std::int64_t> load(static_cast<std::size_t>(replicas), 0), mine;
  for (const std::int64_t i : by_cost) {
    const auto least = std::ranges::min_element(load) - load.begin();
    load[static_cast<std::size_t>(least)] += cost(i) + 1;
    if (least == replica) mine.push_back(i);
  }
  std::ranges::sort(mine);
  return mine;
}

}  // namespace ptrt
