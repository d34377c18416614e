// Which list of products follows which.
#include "kernels/cpu/matmul/weight_order.h"

#include <gtest/gtest.h>

#include <array>

namespace ptrt {
namespace {

class WeightOrderTest : public ::testing::Test {
 protected:
  int begin(std::size_t i) { return order_.begin(&matrices_.at(i)); }
  // Their numbers are as they come in the tests, from 0 on.
  void run(std::initializer_list<std::size_t> sequence) {
    for (const std::size_t i : sequence) ASSERT_EQ(begin(i), static_cast<int>(i));
  }

  std::array<std::byte, 4> matrices_{};
  WeightOrder order_{3};
};

TEST_F(WeightOrderTest, KeepsWhereEachRunBegan) {
  run({0, 1, 2});
  for (const int list : {0, 1, 2})
    for (const int worker : {0, 1, 2}) {
      EXPECT_TRUE(order_.begin_of_run(list, worker).empty());
      order_.begin_of_run(list, worker) = {matrices_.data(), static_cast<std::size_t>(1 + list + worker)};
    }
  run({0, 3});  // a new one leaves those of the others
  for (const int list : {0, 1, 2})
    for (const int worker : {0, 1, 2})
      EXPECT_EQ(order_.begin_of_run(list, worker).size(), static_cast<std::size_t>(1 + list + worker));
}

TEST_F(WeightOrderTest, IsKnownAfterTwoSteps) {
  run({0, 1, 2});
  for (const int list : {0, 1, 2}) EXPECT_EQ(order_.follower(list), WeightOrder::kNone);
  run({0, 1, 2, 0});
  EXPECT_EQ(order_.follower(0), 1);
  EXPECT_EQ(order_.follower(1), 2);
  EXPECT_EQ(order_.follower(2), 0) << "the next step's first";
}

// As experts do: what came once need not come again.
TEST_F(WeightOrderTest, ForgetsWhatChanges) {
  run({0, 1, 0, 1, 0});
  EXPECT_EQ(order_.follower(0), 1);
  run({2, 0});
  EXPECT_EQ(order_.follower(0), WeightOrder::kNone);
  run({2, 0, 2, 0});
  EXPECT_EQ(order_.follower(0), 2);
}

// What a worker reads behind a list must not be what others of that list are setting.
TEST_F(WeightOrderTest, NothingFollowsItself) {
  run({0, 0, 0, 0});
  EXPECT_EQ(order_.follower(0), WeightOrder::kNone);
  run({1, 0, 0, 1, 0, 0, 1});
  EXPECT_EQ(order_.follower(0), 1);
}

}  // namespace
}  // namespace ptrt
