#include "launch/jsonl/result_collector.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
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
    return {completion.request, result_of(completion.request)};
  }
  static std::string result_of(std::int64_t line) { return fmt::format("{{\"id\":{}}}", line); }
  std::unique_ptr<ResultCollector> on_rank_0(JobComm& job, int other_leaders) {
    ResultCollector::Hooks hooks{.format = slow_format};
    hooks.store = [this](std::span<const ResultCollector::Result> results, int from) {
      for (const auto& result : results) {
        EXPECT_EQ(from, result.line < 50 ? 0 : 1);
        EXPECT_EQ(result.json, result_of(result.line));
        journal_.append(result.line, result.json);
      }
    };
    hooks.turn = [this] { return turns_++ == 0; };
    hooks.left = [this](int from) { rank_0_.send(from, "last"); };
    return std::make_unique<ResultCollector>(job, std::move(hooks), other_leaders, CpuSet{});
  }
  std::unique_ptr<ResultCollector> on_rank_1(JobComm& job, bool takes_orders = false) {
    ResultCollector::Hooks hooks{.format = slow_format};
    if (takes_orders)
      hooks.order = [this](std::string_view message) {
        orders_ += message;
        return message == "last";
      };
    return std::make_unique<ResultCollector>(job, std::move(hooks), 0, CpuSet{});
  }
  static void deliver(ResultCollector& collector, std::int64_t first, std::int64_t end) {
    for (std::int64_t i = first; i < end; i++) collector.deliver(completion_of(i));
  }

  fs::path folder_;
  bool made_;
  Mailbox mailbox_;
  MailboxJob rank_0_{mailbox_, 0}, rank_1_{mailbox_, 1};
  Journal journal_;
  std::atomic<int> turns_ = 0;
  std::string orders_;
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
  deliver(*collector, 0, 50);
  collector.reset();
  EXPECT_EQ(journal_.count(), 50);
}

// Sent, and not taken yet when rank 0 fails.
TEST_F(ResultCollectorTest, KeepsWhatOthersHadSentBeforeAFailure) {
  auto second = on_rank_1(rank_1_);
  deliver(*second, 50, 70);
  second->finish();
  auto first = on_rank_0(rank_0_, 2);  // one more leader, which never sends
  deliver(*first, 0, 40);
  first.reset();
  EXPECT_EQ(journal_.count(), 60);
}

// Messages of rank 0 reach a leader while it works, and the last one after its results.
TEST_F(ResultCollectorTest, CarriesOrders) {
  rank_0_.send(1, "one ");
  auto first = on_rank_0(rank_0_, 1);
  auto second = on_rank_1(rank_1_, true);
  deliver(*second, 50, 53);
  rank_0_.send(1, "two ");
  second->finish();
  first->finish();
  EXPECT_EQ(orders_, "one two last");
  EXPECT_EQ(journal_.count(), 3);
  EXPECT_GE(turns_, 2);
}

TEST_F(ResultCollectorTest, TellsWhereItsThreadEnds) {
  std::atomic<bool> told = false;
  ResultCollector::Hooks hooks{.format = slow_format, .store = [](auto, int) { throw_failure("full"); }};
  hooks.failed = [&](std::exception_ptr) { told = true; };
  ResultCollector collector(rank_0_, std::move(hooks), 0, CpuSet{});
  collector.deliver(completion_of(1));
  EXPECT_THROW(collector.finish(), Error);
  EXPECT_TRUE(told);
}

TEST_F(ResultCollectorTest, AFailureElsewhereLosesNothing) {
  auto first = on_rank_0(rank_0_, 1);
  auto second = on_rank_1(rank_1_);
  deliver(*second, 50, 100);
  second.reset();
  first.reset();
  EXPECT_EQ(journal_.count(), 50);
}

TEST_F(ResultCollectorTest, DoesNotWaitLongForADeadRank0) {
  auto second = on_rank_1(rank_1_);
  deliver(*second, 50, 70);
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
