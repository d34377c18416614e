// When a line of progress is due, and what it says.
#include "launch/job/progress.h"

#include <gtest/gtest.h>

#include <vector>

namespace ptrt {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// A batch on a clock that only the test moves.
class Batch {
 public:
  Batch(std::optional<std::int64_t> total, std::int64_t done, ProgressStyle style, bool terminal = false)
      : progress_(
            total, done, style,
            {[this](const std::string& line) { lines.push_back(line); }, terminal, [this] { return now_; }}) {
  }

  // A result after so long.
  void result_after(std::chrono::steady_clock::duration time) {
    now_ += time;
    progress_.advance();
  }
  void end() { progress_.end(); }

  std::vector<std::string> lines;

 private:
  std::chrono::steady_clock::time_point now_{};
  Progress progress_;
};

TEST(Progress, ALineAMinuteOffATerminal) {
  Batch batch(200, 0, {});
  for (int i = 0; i < 130; i++) batch.result_after(seconds(1));
  ASSERT_EQ(batch.lines.size(), 2u);
  EXPECT_EQ(batch.lines[0], "Running batch:  30% Completed | 60/200 [01:00<02:20, 1.00 req/s]\n");
  batch.end();
  ASSERT_EQ(batch.lines.size(), 3u);
  EXPECT_EQ(batch.lines[2], "Running batch:  65% Completed | 130/200 [02:10<01:10, 1.00 req/s]\n");
}

TEST(Progress, WithoutATotal) {
  Batch batch({}, 0, {.log_every_s = 2.0});
  for (int i = 0; i < 2; i++) batch.result_after(seconds(2));
  ASSERT_EQ(batch.lines.size(), 2u);
  EXPECT_EQ(batch.lines[1], "Running batch: 2 done [00:04, 0.50 req/s]\n");
}

TEST(Progress, TheIntervalAskedFor) {
  Batch batch(10, 0, {.log_every_s = 2.5});
  for (int i = 0; i < 10; i++) batch.result_after(seconds(1));
  EXPECT_EQ(batch.lines.size(), 3u);  // after 3, 6 and 9 seconds
  Batch all(3, 0, {.log_every_s = 0});
  for (int i = 0; i < 3; i++) all.result_after(milliseconds(1));
  EXPECT_EQ(all.lines.size(), 3u);
}

TEST(Progress, ABarOnATerminalUnlessLinesAreAskedFor) {
  Batch bar(2, 0, {}, true);
  bar.result_after(milliseconds(100));
  ASSERT_EQ(bar.lines.size(), 1u);
  EXPECT_TRUE(bar.lines[0].starts_with("\r")) << bar.lines[0];
  EXPECT_FALSE(bar.lines[0].ends_with("\n"));
  Batch lines(2, 0, {.log_every_s = 1}, true);
  lines.result_after(milliseconds(900));
  EXPECT_TRUE(lines.lines.empty());
  lines.result_after(milliseconds(100));
  ASSERT_EQ(lines.lines.size(), 1u);
  EXPECT_EQ(lines.lines[0], "Running batch: 100% Completed | 2/2 [00:01<00:00, 2.00 req/s]\n");
}

TEST(Progress, EarlierResultsDoNotCountForTheRate) {
  Batch batch(100, 90, {.log_every_s = 0});
  batch.result_after(seconds(1));
  EXPECT_EQ(batch.lines.at(0), "Running batch:  91% Completed | 91/100 [00:01<00:09, 1.00 req/s]\n");
}

TEST(Progress, NoneWhereItIsNotShown) {
  Batch batch(2, 0, {.shown = false, .log_every_s = 0}, true);
  batch.result_after(seconds(90));
  batch.end();
  EXPECT_TRUE(batch.lines.empty());
}

}  // namespace
}  // namespace ptrt
