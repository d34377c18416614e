#include "launch/job/process.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "answering_job.h"

namespace ptrt {
namespace {

enum class Colour : std::uint8_t { red, green };

TEST(Agreement, AValueHoldsWhereEveryRankHasIt) {
  AnsweringJob same({"1", "1"}), other({"1", "0"}), alone({});
  EXPECT_EQ(all_equal_or(same, Colour::green, Colour::red), Colour::green);
  EXPECT_EQ(all_equal_or(other, Colour::green, Colour::red), Colour::red);
  EXPECT_EQ(all_equal_or(alone, Colour::green, Colour::red), Colour::green);
  EXPECT_TRUE(all_equal(same, "1"));
  EXPECT_FALSE(all_equal(same, "0"));
}

TEST(Agreement, SmallestOfAllRanks) {
  AnsweringJob job({"70", "9"});
  EXPECT_EQ(all_min(job, 100), 9);
  EXPECT_EQ(all_min(job, 8), 8);
}

TEST(Agreement, FirstText) {
  AnsweringJob none({"", ""}), some({"", "third"});
  EXPECT_EQ(first_nonempty(none, ""), "");
  EXPECT_EQ(first_nonempty(some, ""), "third");
  EXPECT_EQ(first_nonempty(some, "mine"), "mine");
}

TEST(Stage, OtherRanksFailTogether) {
  AnsweringJob fine({"0"}), failing({"2"});
  EXPECT_NO_THROW(all_or_none(fine, [] {}));
  EXPECT_THROW(all_or_none(failing, [] {}), OtherRankFailed);
  EXPECT_THROW(all_or_none(failing, [] { throw_bad_input("no"); }), AgreedError);
}

// How a process ends that has an exit handler, which ends it with 9. A death test would need regcomp(), which a tokenizer's
// library has too.
int ends_with(bool at_once) {
  const pid_t child = fork();
  if (child == 0) {
    std::atexit([] { std::_Exit(9); });
    if (at_once) skip_exit_handlers();
    end_process(3);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Exit handlers of CUDA may wait for work that never ends.
TEST(Process, EndsWithoutExitHandlersWhereTheyMayWait) {
  EXPECT_EQ(ends_with(false), 9);
  EXPECT_EQ(ends_with(true), 3);
}

}  // namespace
}  // namespace ptrt
