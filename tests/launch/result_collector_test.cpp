#include "launch/jsonl/result_collector.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "kernels/base/error.h"
#include "mailbox_job.h"
#include "runtime/journal/journal.h"

namespace fs = std::filesystem;

namespace ptrt {
namespace {

using std::chrono::milliseconds;

Completion completion_of(std::int64_t request) {
  Completion completion;
  completion.request = request;
  return completion;
}

class ResultCollectorTest : public testing::Test {
 protected:
  static constexpr std::int64_t kLines = 100;

  ResultCollectorTest()
      : folder_(fs::temp_directory_path() / ("ptrt_collector_" + std::to_string(getpid()))),
        made_(fs::create_directories(folder_)),
        journal_((folder_ / "r.jsonl").string(), "d", kLines, false) {}
  ~ResultCollectorTest() override { fs::remove_all(folder_); }

  // Slower than the engine delivers.
  static ResultCollector::Result slow_format(const Completion& completion) {
    std::this_thread::sleep_for(milliseconds(3));
    return {completion.request, "{}"};
  }
  std::unique_ptr<ResultCollector> on_rank_0(JobComm& job, int other_leaders) {
    return std::make_unique<ResultCollector>(
        job, slow_format,
        [this](const ResultCollector::Result& result) { journal_.append(result.line, result.json); },
        other_leaders, CpuSet{});
  }
  static std::unique_ptr<ResultCollector> on_rank_1(JobComm& job) {
    return std::make_unique<ResultCollector>(job, slow_format, nullptr, 0, CpuSet{});
  }
  static void deliver(ResultCollector& collector, std::int64_t first, std::int64_t end) {
    for (std::int64_t i = first; i < end; i++) collector.deliver(completion_of(i));
  }

  fs::path folder_;
  bool made_;
  Mailbox mailbox_;
  MailboxJob rank_0_{mailbox_, 0}, rank_1_{mailbox_, 1};
  Journal journal_;
};

TEST_F(ResultCollectorTest, CollectsFromAllLeaders) {
  auto first = on_rank_0(rank_0_, 1);
  auto second = on_rank_1(rank_1_);
  deliver(*first, 0, 50);
  deliver(*second, 50, 100);
  second->finish();
  first->finish();
  EXPECT_EQ(journal_.count(), 100);
}

// The exception that ends a run unwinds the collector.
TEST_F(ResultCollectorTest, KeepsWhatWasDeliveredBeforeAFailure) {
  auto collector = on_rank_0(rank_0_, 0);
  deliver(*collector, 0, 80);
  collector.reset();
  EXPECT_EQ(journal_.count(), 80);
}

TEST_F(ResultCollectorTest, KeepsWhatOthersHadSentBeforeAFailure) {
  auto first = on_rank_0(rank_0_, 1);
  deliver(*first, 0, 40);
  for (int i = 50; i < 70; i++)
    rank_1_.post(fmt::format("{} {{}}", i), JobComm::Post::sent, [] { return false; });
  first.reset();
  EXPECT_EQ(journal_.count(), 60);
}

TEST_F(ResultCollectorTest, AFailureElsewhereLosesNothing) {
  auto first = on_rank_0(rank_0_, 1);
  auto second = on_rank_1(rank_1_);
  deliver(*second, 0, 60);
  second.reset();
  first.reset();
  EXPECT_EQ(journal_.count(), 60);
}

TEST_F(ResultCollectorTest, DoesNotWaitLongForADeadRank0) {
  auto second = on_rank_1(rank_1_);
  deliver(*second, 0, 20);
  const auto start = std::chrono::steady_clock::now();
  second.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

// Of a leader that still computes nothing more is expected than what it has sent.
TEST_F(ResultCollectorTest, DoesNotWaitForLeadersThatGoOn) {
  auto first = on_rank_0(rank_0_, 1);
  deliver(*first, 0, 5);
  const auto start = std::chrono::steady_clock::now();
  first.reset();
  EXPECT_EQ(journal_.count(), 5);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST_F(ResultCollectorTest, GivesTheErrorOfItsThread) {
  auto collector = on_rank_0(rank_0_, 0);
  collector->deliver(completion_of(3));
  collector->deliver(completion_of(3));
  EXPECT_THROW(collector->finish(), Error);
}

}  // namespace
}  // namespace ptrt
