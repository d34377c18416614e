// Ranks of a host and the GPUs they see: who takes which, and what is refused.
#include "launch/host/device_binding.h"

#include <gtest/gtest.h>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

using Uuids = std::vector<std::string>;

std::vector<HostGpus> ranks_that_see(const std::vector<Uuids>& seen) {
  std::vector<HostGpus> ranks;
  for (const Uuids& uuids : seen) ranks.push_back({10 + static_cast<int>(ranks.size()), uuids});
  return ranks;
}

std::vector<int> devices(const std::vector<Uuids>& seen, bool share = false) {
  std::vector<int> chosen;
  const auto ranks = ranks_that_see(seen);
  for (std::size_t r = 0; r < ranks.size(); r++) chosen.push_back(choose_gpu(ranks, r, share).device);
  return chosen;
}

std::string refusal(const std::vector<Uuids>& seen, std::size_t mine) {
  try {
    choose_gpu(ranks_that_see(seen), mine, false);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input);
    return error.what();
  }
  return "";
}

TEST(DeviceBinding, AllVisibleGivesTheNodeLocalRank) {
  const Uuids all{"A", "B", "C", "D"};
  EXPECT_EQ(devices({all, all, all, all}), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(devices({all, all}), (std::vector<int>{0, 1}));
}

TEST(DeviceBinding, OneVisibleIsDeviceZero) {
  EXPECT_EQ(devices({{"A"}, {"B"}, {"C"}}), (std::vector<int>{0, 0, 0}));
  EXPECT_EQ(devices({{"A", "B"}, {"C", "D"}, {"B", "A"}}), (std::vector<int>{0, 0, 0}));
}

// What a rank takes first may be all that another one sees.
TEST(DeviceBinding, ARankGivesUpItsGpuForOneThatSeesNoOther) {
  EXPECT_EQ(devices({{"A", "B"}, {"A"}}), (std::vector<int>{1, 0}));
  EXPECT_EQ(devices({{"A", "B"}, {"B", "C"}, {"A"}}), (std::vector<int>{1, 1, 0}));
  EXPECT_NE(refusal({{"A", "B"}, {"A"}, {"B"}}, 0).find("3 ranks see 2 GPUs"), std::string::npos);
}

TEST(DeviceBinding, TwoRanksOnOneGpuAreRefusedByName) {
  const std::string text = refusal({{"A"}, {"B"}, {"A"}}, 0);
  EXPECT_NE(text.find("ranks 10 and 12 "), std::string::npos) << text;
  EXPECT_NE(text.find("GPU A"), std::string::npos) << text;
  EXPECT_NE(text.find("--share-gpu"), std::string::npos) << text;
  // Every rank of the host has the same message.
  for (const std::size_t mine : {1, 2}) EXPECT_EQ(refusal({{"A"}, {"B"}, {"A"}}, mine), text);
  EXPECT_NE(refusal({{"A", "B"}, {"A", "B"}, {"A", "B"}}, 1).find("3 ranks see 2 GPUs"), std::string::npos);
}

TEST(DeviceBinding, SharedOnRequest) {
  const Uuids both{"A", "B"};
  EXPECT_EQ(devices({both, both, both, both}, true), (std::vector<int>{0, 1, 0, 1}));
  const auto ranks = ranks_that_see({both, both, both});
  EXPECT_EQ(choose_gpu(ranks, 0, true).sharers, 2);
  EXPECT_EQ(choose_gpu(ranks, 1, true).sharers, 1);
}

TEST(DeviceBinding, TextKeepsEverything) {
  const HostGpus read = parse_host_gpus(to_text({7, {"GPU-1", "GPU-2"}}));
  EXPECT_EQ(read.rank, 7);
  EXPECT_EQ(read.uuids, (Uuids{"GPU-1", "GPU-2"}));
  EXPECT_TRUE(parse_host_gpus(to_text({3, {}})).uuids.empty());
}

}  // namespace
}  // namespace ptrt
