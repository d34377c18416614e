#include "kernels/base/host_cores.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <functional>
#include <set>
#include <thread>

namespace ptrt {
namespace {

// Bindings end with the thread that they are tried on.
void on_a_thread(const std::function<void()>& body) {
  std::thread(body).join();
}

TEST(HostCores, AreThoseTheSystemAllows) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
  std::set<int> seen;
  for (const CpuSet& core : allowed_cores()) {
    EXPECT_FALSE(core.empty());
    EXPECT_TRUE(std::ranges::is_sorted(core));
    for (const int unit : core) {
      EXPECT_TRUE(CPU_ISSET(unit, &allowed)) << unit;
      EXPECT_TRUE(seen.insert(unit).second) << unit << " in two cores";
    }
  }
  EXPECT_EQ(static_cast<int>(seen.size()), CPU_COUNT(&allowed));
}

TEST(HostCores, FollowTheBinding) {
  const std::vector<CpuSet> before = allowed_cores();
  on_a_thread([&] {
    if (!bind_this_thread(before.back())) GTEST_SKIP() << "binding is not permitted here";
    EXPECT_EQ(allowed_cores(), std::vector<CpuSet>{before.back()});
    for (int i = 0; i < 100; i++) EXPECT_TRUE(std::ranges::count(before.back(), sched_getcpu()));
    EXPECT_TRUE(bind_this_thread({})) << "any";
    EXPECT_EQ(allowed_cores(), std::vector<CpuSet>{before.back()}) << "which changes nothing";
    std::thread([&] {
      EXPECT_EQ(allowed_cores(), std::vector<CpuSet>{before.back()}) << "inherited";
    }).join();
  });
  EXPECT_EQ(allowed_cores(), before) << "of other threads";
}

TEST(HostCores, RefuseUnitsThatAreNotThere) {
  on_a_thread([] {
    const std::vector<CpuSet> before = allowed_cores();
    EXPECT_FALSE(bind_this_thread({100000}));
    EXPECT_EQ(allowed_cores(), before);
  });
}

}  // namespace
}  // namespace ptrt
