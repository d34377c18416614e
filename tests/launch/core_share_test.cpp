#include "launch/host/core_share.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace ptrt {
namespace {

// Cores first … first + count - 1; with two units a core, the second is numbered `siblings` higher.
std::vector<CpuSet> cores(int first, int count, int siblings = 0) {
  std::vector<CpuSet> all;
  for (int core = first; core < first + count; core++)
    all.push_back(siblings == 0 ? CpuSet{core} : CpuSet{core, core + siblings});
  return all;
}

std::vector<CoreShare> divide(const std::vector<HostRank>& ranks) {
  std::vector<CoreShare> shares;
  for (std::size_t r = 0; r < ranks.size(); r++) shares.push_back(divide_cores(ranks, r));
  return shares;
}

std::vector<CoreShare> divide(std::size_t ranks, const std::vector<CpuSet>& all, int threads = 0) {
  return divide(std::vector<HostRank>(ranks, {all, threads}));
}

TEST(CoreShare, OneRankTakesEveryCore) {
  const CoreShare share = divide(1, cores(0, 8))[0];
  EXPECT_EQ(share.threads, 8);
  EXPECT_EQ(share.cores, cores(0, 8));
  EXPECT_TRUE(share.bound);
  EXPECT_FALSE(share.oversubscribed);
  EXPECT_EQ(share.worker_cores(), cores(0, 8));
}

TEST(CoreShare, RanksTakeConsecutiveCoresInOrder) {
  const auto shares = divide(4, cores(0, 8));
  for (int r = 0; r < 4; r++) {
    EXPECT_EQ(shares[r].cores, cores(2 * r, 2));
    EXPECT_EQ(shares[r].threads, 2);
    EXPECT_TRUE(shares[r].bound);
    EXPECT_EQ(shares[r].units(), (CpuSet{2 * r, 2 * r + 1}));
  }
}

TEST(CoreShare, TheLauncherLimitsTheDefault) {
  const HostRank asked{cores(0, 8), 3, 2}, limited{cores(0, 8), 0, 2}, ample{cores(0, 8), 0, 16};
  EXPECT_EQ(divide({limited})[0].threads, 2);
  EXPECT_EQ(divide({ample})[0].threads, 8) << "the cores are fewer";
  EXPECT_EQ(divide({asked})[0].threads, 3) << "--threads is taken as it is";
  const auto shares = divide({limited, ample});
  EXPECT_EQ(shares[0].threads, 2);
  EXPECT_EQ(shares[1].threads, 4);
  EXPECT_TRUE(shares[0].bound);
  EXPECT_FALSE(shares[0].oversubscribed);
}

// Ranks exchange what they have as text.
TEST(CoreShare, TheEnvironmentLimitsAJobOfOneRank) {
  setenv("SLURM_JOB_ID", "7", 1);
  setenv("SLURM_CPUS_PER_TASK", "1", 1);
  const auto limited = take_core_share(*make_solo_job_comm(), 0, false);
  const auto asked = take_core_share(*make_solo_job_comm(), 2, false);
  unsetenv("SLURM_JOB_ID");
  unsetenv("SLURM_CPUS_PER_TASK");
  EXPECT_EQ(limited.threads, 1);
  EXPECT_EQ(asked.threads, 2);
}

TEST(CoreShare, HyperThreadsAreNoCores) {
  const auto shares = divide(2, cores(0, 4, 4));
  EXPECT_EQ(shares[0].threads, 2);
  EXPECT_EQ(shares[1].worker_cores(), (std::vector<CpuSet>{{2, 6}, {3, 7}}));
  EXPECT_EQ(shares[1].units(), (CpuSet{2, 3, 6, 7}));
}

// The system's numbers may not follow the topology; the order of the list is used.
TEST(CoreShare, KeepsTheOrderOfTheTopology) {
  const std::vector<CpuSet> two_sockets{{0}, {2}, {4}, {6}, {1}, {3}, {5}, {7}};
  const auto shares = divide(2, two_sockets);
  EXPECT_EQ(shares[0].cores, (std::vector<CpuSet>{{0}, {2}, {4}, {6}}));
  EXPECT_EQ(shares[1].cores, (std::vector<CpuSet>{{1}, {3}, {5}, {7}}));
}

TEST(CoreShare, UnevenSharesOverlapNowhereAndThreadsAreEqual) {
  const auto shares = divide(3, cores(0, 8));
  std::vector<CpuSet> joined;
  for (const CoreShare& share : shares) {
    EXPECT_EQ(share.threads, 2);
    EXPECT_TRUE(share.bound);
    EXPECT_EQ(share.worker_cores().size(), 2u);
    joined.insert(joined.end(), share.cores.begin(), share.cores.end());
  }
  EXPECT_EQ(joined, cores(0, 8));
}

TEST(CoreShare, MoreRanksThanCoresShareThemAll) {
  for (const CoreShare& share : divide(8, cores(0, 2))) {
    EXPECT_EQ(share.threads, 1);
    EXPECT_FALSE(share.bound);
    EXPECT_TRUE(share.oversubscribed);
    EXPECT_EQ(share.cores, cores(0, 2));
    EXPECT_TRUE(share.worker_cores().empty());
    EXPECT_TRUE(share.units().empty());
  }
}

TEST(CoreShare, MoreThreadsThanCores) {
  for (const CoreShare& share : divide(2, cores(0, 4), 3)) {
    EXPECT_EQ(share.threads, 3);
    EXPECT_FALSE(share.bound);
    EXPECT_TRUE(share.oversubscribed);
  }
  // Each has a hyper-thread: no core for each to bind to, but no thread waits for another.
  for (const CoreShare& share : divide(2, cores(0, 4, 4), 3)) {
    EXPECT_FALSE(share.bound);
    EXPECT_FALSE(share.oversubscribed);
  }
}

TEST(CoreShare, FewerThreadsThanCores) {
  const auto ranks = divide(2, cores(0, 8), 1);
  EXPECT_EQ(ranks[1].worker_cores(), cores(4, 1));
  EXPECT_EQ(ranks[1].units(), (CpuSet{4, 5, 6, 7}));
}

TEST(CoreShare, RanksBoundByTheLauncherKeepTheirCores) {
  const auto shares = divide({{cores(0, 4), 0}, {cores(4, 4), 0}, {cores(8, 2), 0}, {cores(10, 1), 3}});
  EXPECT_EQ(shares[0].worker_cores(), cores(0, 4));
  EXPECT_EQ(shares[1].worker_cores(), cores(4, 4));
  EXPECT_EQ(shares[2].threads, 2);
  EXPECT_EQ(shares[2].worker_cores(), cores(8, 2));
  EXPECT_FALSE(shares[2].oversubscribed);
  EXPECT_TRUE(shares[3].oversubscribed) << "three threads on its one core";
  EXPECT_FALSE(shares[3].bound);
}

// Two ranks a socket, as `mpirun --bind-to socket` leaves them, mapped in turns.
TEST(CoreShare, RanksOfOneSocketDivideIt) {
  const auto shares = divide({{cores(0, 4), 0}, {cores(4, 4), 0}, {cores(0, 4), 0}, {cores(4, 4), 0}});
  EXPECT_EQ(shares[0].worker_cores(), cores(0, 2));
  EXPECT_EQ(shares[1].worker_cores(), cores(4, 2));
  EXPECT_EQ(shares[2].worker_cores(), cores(2, 2));
  EXPECT_EQ(shares[3].worker_cores(), cores(6, 2));
}

TEST(CoreShare, PartlySharedCoresAreLeftToTheSystem) {
  const auto shares = divide({{cores(0, 4), 0}, {cores(2, 4), 0}, {cores(5, 4), 0}, {cores(20, 2), 0}});
  for (int r = 0; r < 3; r++) {
    EXPECT_EQ(shares[r].threads, 1) << "four cores among three";
    EXPECT_FALSE(shares[r].bound);
    EXPECT_FALSE(shares[r].oversubscribed);
  }
  EXPECT_EQ(shares[3].worker_cores(), cores(20, 2));
  EXPECT_TRUE(divide({{cores(0, 4), 4}, {cores(2, 4), 4}})[0].oversubscribed) << "eight threads on six cores";
}

TEST(CoreShare, AJobOfOneRankIsNotBound) {
  const auto share = take_core_share(*make_solo_job_comm(), 0, true);
  EXPECT_EQ(static_cast<std::size_t>(share.threads), allowed_cores().size());
  EXPECT_FALSE(share.bound);
  EXPECT_EQ(share.describe(), "not bound");
}

}  // namespace
}  // namespace ptrt
