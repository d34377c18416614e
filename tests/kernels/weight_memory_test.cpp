#include "kernels/weight_memory.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

// A child sees what its parent wrote, in blocks of the same sizes, and later changes too: it is one memory.
TEST(WeightMemory, IsOneForSeveralProcesses) {
  WeightMemory offered;
  offered.offer();
  const auto small = offered.allocate(100, "small"), large = offered.allocate((4 << 20) + 3, "large");
  std::memcpy(small.get(), "first", 6);
  std::memcpy(large.get() + (4 << 20), "end", 3);
  const std::string description = offered.description();
  int to_parent[2], to_child[2];
  ASSERT_EQ(pipe(to_parent), 0);
  ASSERT_EQ(pipe(to_child), 0);
  const pid_t child = fork();
  if (child == 0) {
    WeightMemory adopted;
    adopted.adopt(description);
    const auto a = adopted.allocate(100, "small"), b = adopted.allocate((4 << 20) + 3, "large");
    bool good = adopted.adopted() && std::memcmp(a.get(), "first", 6) == 0 &&
                std::memcmp(b.get() + (4 << 20), "end", 3) == 0;
    char byte = 0;
    good &= write(to_parent[1], "r", 1) == 1 && read(to_child[0], &byte, 1) == 1;
    _exit(good && std::memcmp(a.get(), "later", 6) == 0 ? 0 : 1);
  }
  char byte = 0;
  ASSERT_EQ(read(to_parent[0], &byte, 1), 1);
  std::memcpy(small.get(), "later", 6);
  ASSERT_EQ(write(to_child[1], "r", 1), 1);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(WeightMemory, IsItsOwnByDefault) {
  WeightMemory memory;
  const auto block = memory.allocate(100, "a block");
  EXPECT_EQ(block[99], std::byte{0});
  EXPECT_FALSE(memory.adopted());
  EXPECT_EQ(memory.description(), "");
}

TEST(WeightMemory, RefusesWhatIsNotThatMemory) {
  WeightMemory offered;
  offered.offer();
  const auto block = offered.allocate(100, "a block");
  const std::string description = offered.description();
  WeightMemory adopted;
  // Another inode, another size, another number, another process.
  EXPECT_THROW(adopted.adopt(fmt::format("{} 0 1 2097152", getpid())), Error);
  std::string larger = description;
  larger.replace(larger.find(" 2097152"), 8, " 4194304");
  EXPECT_THROW(adopted.adopt(larger), Error);
  EXPECT_THROW(adopted.adopt(fmt::format("{} 9999 1 2097152", getpid())), Error);
  EXPECT_THROW(adopted.adopt("1999999999 3 1 2097152"), Error);
  EXPECT_FALSE(adopted.adopted());
  adopted.adopt(description);
  EXPECT_THROW(adopted.allocate(3 << 20, "larger"), Error) << "the blocks are not those";
  adopted.allocate(100, "a block");
  EXPECT_THROW(adopted.allocate(100, "one more"), Error);
}

TEST(WeightMemoryDeathTest, OfAnotherProcessIsReadOnly) {
  WeightMemory offered, adopted;
  offered.offer();
  const auto block = offered.allocate(100, "a block");
  adopted.adopt(offered.description());
  const auto same = adopted.allocate(100, "a block");
  EXPECT_DEATH(same[0] = std::byte{1}, "");
}

}  // namespace
}  // namespace ptrt
