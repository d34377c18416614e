#include "runtime/serving/replica_share.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace ptrt {
namespace {

TEST(Replicas, ShareEveryRequestOnce) {
  std::vector<Request> requests(50);
  for (std::size_t i = 0; i < requests.size(); i++) {
    requests[i].tokens.assign(1 + i * 7 % 13, 0);
    requests[i].max_tokens = static_cast<std::int64_t>(1 + i % 5);
  }
  std::vector<std::int64_t> pending(50), seen;
  std::iota(pending.begin(), pending.end(), 0);
  pending.erase(pending.begin() + 3);
  std::vector<std::int64_t> loads;
  for (std::int64_t replica = 0; replica < 4; replica++) {
    const auto mine = requests_of_replica(requests, pending, 4, replica);
    EXPECT_TRUE(std::is_sorted(mine.begin(), mine.end()));
    std::int64_t load = 0;
    for (const auto i : mine) load += requests[static_cast<std::size_t>(i)].cached_tokens() + 1;
    loads.push_back(load);
    seen.insert(seen.end(), mine.begin(), mine.end());
  }
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(seen, pending);
  EXPECT_LE(*std::max_element(loads.begin(), loads.end()) - *std::min_element(loads.begin(), loads.end()),
            18);
}

}  // namespace
}  // namespace ptrt
