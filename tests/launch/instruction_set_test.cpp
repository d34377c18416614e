#include "launch/session/instruction_set.h"

#include <gtest/gtest.h>

namespace ptrt {
namespace {

using Names = std::vector<std::string>;

TEST(InstructionSet, TheBestThatAllRanksHave) {
  const Names zen4{"AVX3+BF16", "AVX3", "AVX2", "SSE4"}, skylake{"AVX3", "AVX2", "SSE4"},
      haswell{"AVX2", "SSE4"};
  EXPECT_EQ(best_common({zen4}), "AVX3+BF16");
  EXPECT_EQ(best_common({zen4, zen4}), "AVX3+BF16");
  EXPECT_EQ(best_common({zen4, skylake, zen4}), "AVX3");
  EXPECT_EQ(best_common({skylake, zen4}), "AVX3");
  EXPECT_EQ(best_common({zen4, skylake, haswell}), "AVX2");
}

TEST(InstructionSet, NoneIsCommonToTwoArchitectures) {
  const Names x86{"AVX3", "AVX2"}, arm{"NEON"};
  EXPECT_EQ(best_common({x86, arm}), std::nullopt);
  EXPECT_EQ(best_common({x86, x86, arm}), std::nullopt);
  EXPECT_EQ(best_common({arm, arm}), "NEON");
}

}  // namespace
}  // namespace ptrt
