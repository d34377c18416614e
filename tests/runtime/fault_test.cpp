#include "runtime/job/fault.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

TEST(Fault, FiresAtItsPointAndRank) {
  setenv("PTRT_FAULT", "rank=1,at=step,after=2", 1);
  arm_faults(0);
  EXPECT_NO_THROW(fault_point("step"));
  arm_faults(1);
  EXPECT_NO_THROW(fault_point("step"));
  EXPECT_NO_THROW(fault_point("sync"));
  EXPECT_NO_THROW(fault_point("step"));
  EXPECT_THROW(fault_point("step"), Error);
  setenv("PTRT_FAULT", "rank=1,at=step,after=1,pause_ms=20", 1);
  arm_faults(1);
  const auto seconds = [] {
    const auto start = std::chrono::steady_clock::now();
    fault_point("step");
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  seconds();
  EXPECT_GE(seconds(), 0.02) << "slow from the second time on";
  EXPECT_GE(seconds(), 0.02);
  setenv("PTRT_FAULT", "rank=1,at=nowhere", 1);
  EXPECT_THROW(arm_faults(1), Error);
  unsetenv("PTRT_FAULT");
  arm_faults(1);
}

}  // namespace
}  // namespace ptrt
