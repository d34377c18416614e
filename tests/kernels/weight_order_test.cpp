// Which list of products follows which.
#include "kernels/cpu/weight_order.h"

#include <gtest/gtest.h>

#include <array>

namespace ptrt {
namespace {

class WeightOrderTest : public ::testing::Test {
 protected:
  const WeightOrder::List& begin(std::size_t i) { return order_.begin(&matrices_.at(i)); }
  const WeightOrder::List* list(std::size_t i) { return lists_.at(i); }
  // Runs them once and keeps where their records are.
  void run(std::initializer_list<std::size_t> sequence) {
    for (const std::size_t i : sequence) lists_.at(i) = &begin(i);
  }

  std::array<std::byte, 4> matrices_{};
  std::array<const WeightOrder::List*, 4> lists_{};
  WeightOrder order_{3};
};

TEST_F(WeightOrderTest, HasABeginningForEachWorker) {
  EXPECT_EQ(begin(0).begins.size(), 3u);
}

TEST_F(WeightOrderTest, IsKnownAfterTwoSteps) {
  run({0, 1, 2});
  for (const std::size_t i : {0, 1, 2}) EXPECT_EQ(list(i)->follower(), nullptr);
  run({0, 1, 2, 0});
  EXPECT_EQ(list(0)->follower(), list(1));
  EXPECT_EQ(list(1)->follower(), list(2));
  EXPECT_EQ(list(2)->follower(), list(0)) << "the next step's first";
}

// As experts do: what came once need not come again.
TEST_F(WeightOrderTest, ForgetsWhatChanges) {
  run({0, 1, 0, 1, 0});
  EXPECT_EQ(list(0)->follower(), list(1));
  run({2, 0});
  EXPECT_EQ(list(0)->follower(), nullptr);
  run({2, 0, 2, 0});
  EXPECT_EQ(list(0)->follower(), list(2));
}

// What a worker reads behind a list must not be what others of that list are setting.
TEST_F(WeightOrderTest, NothingFollowsItself) {
  run({0, 0, 0, 0});
  EXPECT_EQ(list(0)->follower(), nullptr);
  run({1, 0, 0, 1, 0, 0, 1});
  EXPECT_EQ(list(0)->follower(), list(1));
}

}  // namespace
}  // namespace ptrt
