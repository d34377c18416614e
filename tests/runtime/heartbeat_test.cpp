// Signs of life between ranks: who is silent, who works, and which rank's watchdog says so.
#include "runtime/job/heartbeat.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "kernels/base/progress.h"
#include "runtime/comm/watchdog.h"
#include "runtime/comm/watched_comm.h"

namespace ptrt {
namespace {

using namespace std::chrono_literals;

// Pulses between ranks of one process. A rank that is cut off neither sends nor hears.
class Wires {
 public:
  class Comm final : public PulseComm {
   public:
    Comm(Wires& wires, int rank, int size) : wires_(wires), rank_(rank), size_(size) {}
    int size() const override { return size_; }
    int rank() const override { return rank_; }
    void send(int to, const Pulse& pulse) override {
      const std::lock_guard lock(wires_.mutex_);
      if (wires_.cut_ != rank_ && wires_.cut_ != to) wires_.sent_[{rank_, to}] = pulse;
    }
    std::optional<Pulse> receive(int from) override {
      const std::lock_guard lock(wires_.mutex_);
      const auto found = wires_.sent_.find({from, rank_});
      if (found == wires_.sent_.end()) return std::nullopt;
      const Pulse pulse = found->second;
      wires_.sent_.erase(found);
      return pulse;
    }
    void announce_end() override {
      const std::lock_guard lock(wires_.mutex_);
      if (wires_.cut_ != rank_) wires_.ending_.insert(rank_);
    }
    int ending_rank() override {
      const std::lock_guard lock(wires_.mutex_);
      for (const int rank : wires_.ending_)
        if (rank != rank_) return rank;
      return -1;
    }

   private:
    Wires& wires_;
    int rank_, size_;
  };

  std::unique_ptr<PulseComm> comm(int rank, int size) { return std::make_unique<Comm>(*this, rank, size); }
  void cut(int rank) {
    const std::lock_guard lock(mutex_);
    cut_ = rank;
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<int, int>, Pulse> sent_;
  std::set<int> ending_;
  int cut_ = -1;
};

TEST(Heartbeat, SilentRanksAreNamedWithTheirHosts) {
  Wires wires;
  const std::vector<std::string> hosts{"a", "a", "b"};
  std::vector<Heartbeat> ranks;
  for (int r = 0; r < 3; r++) ranks.emplace_back(wires.comm(r, 3), hosts, 0.01);
  const auto beat_for = [&](std::chrono::milliseconds time) {
    const auto end = std::chrono::steady_clock::now() + time;
    for (std::uint64_t work = 0; std::chrono::steady_clock::now() < end; std::this_thread::sleep_for(2ms))
      for (Heartbeat& rank : ranks) rank.beat(work);
  };
  beat_for(60ms);
  for (const Heartbeat& rank : ranks) EXPECT_LT(rank.silence(), 0.04);
  wires.cut(2);
  beat_for(300ms);
  EXPECT_GT(ranks[0].silence(), 0.2);
  EXPECT_EQ(ranks[0].silent_ranks(0.2), "rank 2 (b)");
  EXPECT_GT(ranks[1].silence(), 0.2) << "rank 0 told it";
  EXPECT_EQ(ranks[1].silent_ranks(0.2), "rank 2 (b)");
  EXPECT_EQ(ranks[2].silent_ranks(0.2), "rank 0 (a)") << "on its side of the cut";
  ranks[0].restart();
  EXPECT_LT(ranks[0].silence(), 0.1);
}

TEST(Heartbeat, WorkOfOneRankIsKnownToAll) {
  Wires wires;
  std::vector<Heartbeat> ranks;
  for (int r = 0; r < 3; r++) ranks.emplace_back(wires.comm(r, 3), std::vector<std::string>(3, "a"), 0.005);
  const auto beat_for = [&](std::chrono::milliseconds time, bool works) {
    const auto end = std::chrono::steady_clock::now() + time;
    for (; std::chrono::steady_clock::now() < end; std::this_thread::sleep_for(2ms)) {
      static std::uint64_t work = 0;
      work += works ? 1 : 0;
      for (int r = 0; r < 3; r++) ranks[static_cast<std::size_t>(r)].beat(r == 2 ? work : 0);
    }
  };
  beat_for(300ms, true);
  for (const Heartbeat& rank : ranks) EXPECT_LT(rank.since_work(), 0.15);
  beat_for(300ms, false);
  for (const Heartbeat& rank : ranks) EXPECT_GT(rank.since_work(), 0.15);
}

struct Report {
  int rank = -1;
  std::string what;
  int reports = 0;  // by all ranks
};

// The first report of the watchdogs of three ranks, within a second or two.
Report first_report(const std::function<void(std::vector<std::unique_ptr<Watchdog>>&, Wires&)>& body,
                    double timeout_s = 0.4, const std::function<bool()>& stop_requested = {}) {
  Wires wires;
  std::promise<Report> said;
  auto future = said.get_future();
  std::once_flag once;
  std::atomic<int> reports{0};
  std::vector<std::unique_ptr<Watchdog>> dogs;
  for (int r = 0; r < 3; r++) {
    dogs.push_back(std::make_unique<Watchdog>(
        WatchdogOptions{.step_timeout_s = timeout_s, .rank = r, .stop_requested = stop_requested},
        [&, r](const std::string& what, const auto&) {
          reports++;
          std::call_once(once, [&] { said.set_value({r, what, 0}); });
        }));
    dogs.back()->begin_heartbeat(wires.comm(r, 3), {"a", "b", "c"});
    dogs.back()->enter("loading");
  }
  body(dogs, wires);
  Report report = future.wait_for(0s) == std::future_status::ready ? future.get() : Report{};
  report.reports = reports;
  dogs.clear();
  return report;
}

TEST(Watchdog, ARankThatIsCutOffIsReportedByRank0) {
  const Report report = first_report([](auto& dogs, Wires& wires) {
    std::this_thread::sleep_for(100ms);
    wires.cut(1);
    for (int i = 0; i < 40; i++) {
      for (auto& dog : dogs) dog->enter("loading");
      std::this_thread::sleep_for(25ms);
    }
  });
  EXPECT_EQ(report.rank, 0);
  EXPECT_NE(report.what.find("loading: no sign of life from rank 1 (b) for"), std::string::npos)
      << report.what;
}

TEST(Watchdog, Rank0IsReportedByTheNext) {
  const Report report = first_report([](auto& dogs, Wires& wires) {
    wires.cut(0);
    dogs[0]->stop();
    for (int i = 0; i < 80; i++) {
      dogs[1]->enter("loading");
      dogs[2]->enter("loading");
      std::this_thread::sleep_for(25ms);
    }
  });
  EXPECT_EQ(report.rank, 1);
  EXPECT_NE(report.what.find("no sign of life from rank 0 (a)"), std::string::npos) << report.what;
}

// The launcher takes its time to end the others, which see the same failure meanwhile.
TEST(Watchdog, ThatAnotherRankReportsIsNotRepeated) {
  const Report report = first_report([](auto& dogs, Wires& wires) {
    wires.cut(2);
    dogs[2]->stop();
    for (int i = 0; i < 120; i++) {  // rank 1 would report 0.8 s after rank 0
      note_progress();
      std::this_thread::sleep_for(25ms);
    }
  });
  EXPECT_EQ(report.rank, 0);
  EXPECT_EQ(report.reports, 1) << report.what;
}

TEST(Watchdog, WaitingForARankThatWorksIsNoStall) {
  const Report report = first_report([](auto& dogs, Wires&) {
    const Watchdog::Wait wait{"the other ranks", nullptr};
    dogs[0]->wait_begins(wait);
    dogs[1]->wait_begins(wait);
    for (int i = 0; i < 60; i++) {
      dogs[2]->step_begins();
      std::this_thread::sleep_for(25ms);
    }
    dogs[0]->forget_waits();
    dogs[1]->forget_waits();
  });
  EXPECT_EQ(report.rank, -1) << report.what;
}

TEST(Watchdog, TheRankThatStopsWorkingIsReported) {
  const Report report = first_report([](auto& dogs, Wires&) {
    const Watchdog::Wait wait{"the other ranks", nullptr};
    dogs[0]->wait_begins(wait);
    dogs[1]->wait_begins(wait);
    std::this_thread::sleep_for(1500ms);
    dogs[0]->forget_waits();
    dogs[1]->forget_waits();
  });
  EXPECT_EQ(report.rank, 2);
  EXPECT_NE(report.what.find("loading: stuck for"), std::string::npos) << report.what;
}

TEST(Watchdog, NotedProgressIsProgress) {
  const Report report = first_report([](auto&, Wires&) {
    for (int i = 0; i < 40; i++) {
      note_progress();
      std::this_thread::sleep_for(25ms);
    }
  });
  EXPECT_EQ(report.rank, -1) << report.what;
}

TEST(Watchdog, ASignalEndsTheWaitForASilentRank) {
  std::atomic<bool> stop{false};
  const Report report = first_report(
      [&](auto&, Wires& wires) {
        std::this_thread::sleep_for(100ms);
        wires.cut(2);
        std::this_thread::sleep_for(5500ms);  // signs of life come every two seconds
        stop = true;
        std::this_thread::sleep_for(1s);
      },
      60, [&] { return stop.load(); });
  EXPECT_EQ(report.rank, 0);
  EXPECT_NE(report.what.find("to be stopped by a signal, but rank 2 (c)"), std::string::npos) << report.what;
}

}  // namespace
}  // namespace ptrt
