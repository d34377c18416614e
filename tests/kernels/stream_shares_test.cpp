// Runs of a stream: all of it, once, and longer for those who are faster.
#include "kernels/cpu/matmul/stream_shares.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "kernels/cpu/host/thread_pool.h"

namespace ptrt {
namespace {

constexpr int kJobsPerLook = 4;
constexpr std::int64_t kBytes = 1 << 20;

void expect_whole(const StreamShares& shares, int workers, std::int64_t total, std::int64_t quantum) {
  std::int64_t at = 0;
  for (int w = 0; w < workers; ++w) {
    EXPECT_EQ(shares.begin_of(w), at);
    EXPECT_GE(shares.end_of(w), at);
    at = shares.end_of(w);
    EXPECT_TRUE(at % quantum == 0 || at == total) << "worker " << w;
  }
  EXPECT_EQ(at, total);
}

// Tells of so many looks at jobs in which worker w takes seconds[w] a unit.
void observe(StreamShares& shares, const std::vector<double>& seconds, int looks,
             std::int64_t bytes = kBytes) {
  for (int job = 0; job < looks * kJobsPerLook; ++job) {
    shares.begin_job(1000, 1, bytes);
    for (std::size_t w = 0; w < seconds.size(); ++w) {
      const int worker = static_cast<int>(w);
      shares.tell(worker, seconds[w] * static_cast<double>(shares.end_of(worker) - shares.begin_of(worker)));
    }
    shares.end_job();
  }
}

TEST(StreamShares, AreEqualAtFirst) {
  for (const int workers : {1, 2, 3, 7})
    for (const std::int64_t total : {0, 1, 2, 5, 48, 49, 256, 2000}) {
      StreamShares shares(workers);
      shares.begin_job(total, 2, kBytes);
      expect_whole(shares, workers, total, 2);
      for (int w = 0; w < workers; ++w)
        EXPECT_NEAR(static_cast<double>(shares.end_of(w) - shares.begin_of(w)),
                    static_cast<double>(total) / workers, 3)
            << workers << " workers, " << total;
    }
}

TEST(StreamShares, FollowThePace) {
  StreamShares shares(2);
  observe(shares, {1.2e-6, 1e-6}, 400);
  shares.begin_job(2200, 1, kBytes);
  expect_whole(shares, 2, 2200, 1);
  EXPECT_NEAR(static_cast<double>(shares.end_of(0)), 1000, 2);
  observe(shares, {1e-6, 1e-6}, 400);  // and back
  shares.begin_job(2000, 1, kBytes);
  EXPECT_NEAR(static_cast<double>(shares.end_of(0)), 1000, 2);
}

TEST(StreamShares, FollowThePaceOfMany) {
  StreamShares shares(4);
  const std::vector<double> seconds{1e-6, 1.25e-6, 0.9e-6, 1e-6};
  observe(shares, seconds, 400);
  shares.begin_job(100000, 2, kBytes);
  expect_whole(shares, 4, 100000, 2);
  double speed = 0;
  for (const double s : seconds) speed += 1 / s;
  for (int w = 0; w < 4; ++w)
    EXPECT_NEAR(static_cast<double>(shares.end_of(w) - shares.begin_of(w)),
                100000 / seconds[static_cast<std::size_t>(w)] / speed, 200)
        << w;
}

// What is learnt of streams of one size says nothing of others.
TEST(StreamShares, LearnBySize) {
  StreamShares shares(2);
  observe(shares, {1.2e-6, 1e-6}, 400);
  shares.begin_job(1000, 1, 64 * kBytes);
  EXPECT_EQ(shares.end_of(0), 500);
  observe(shares, {1e-6, 1.2e-6}, 400, 64 * kBytes);
  shares.begin_job(2200, 1, kBytes);
  EXPECT_NEAR(static_cast<double>(shares.end_of(0)), 1000, 2);
  shares.begin_job(2200, 1, 64 * kBytes);
  EXPECT_NEAR(static_cast<double>(shares.end_of(0)), 1200, 2);
}

// Also where every step has as many streams as lie between two looks.
TEST(StreamShares, LookAtEverySizeInTime) {
  StreamShares shares(2);
  for (int step = 0; step < 400; ++step)
    for (int list = 0; list < kJobsPerLook; ++list) {
      shares.begin_job(1000, 1, kBytes << list);
      shares.tell(0, 1.2e-6 * static_cast<double>(shares.end_of(0)));
      shares.tell(1, 1e-6 * static_cast<double>(1000 - shares.end_of(0)));
      shares.end_job();
    }
  for (int list = 0; list < kJobsPerLook; ++list) {
    shares.begin_job(2200, 1, kBytes << list);
    EXPECT_NEAR(static_cast<double>(shares.end_of(0)), 1000, 10) << list;
  }
}

// One worker that stands still must not leave the others all the work for long, nor a single pause.
TEST(StreamShares, DoNotRunAway) {
  StreamShares shares(2);
  observe(shares, {1.0, 1e-9}, 1000);
  shares.begin_job(1000, 1, kBytes);
  EXPECT_GT(shares.end_of(0), 250);
  StreamShares calm(2);
  observe(calm, {100e-6, 1e-6}, 1);
  calm.begin_job(1000, 1, kBytes);
  EXPECT_GT(calm.end_of(0), 480);
}

// Where a run was taken by somebody else there is nothing to learn.
TEST(StreamShares, LearnFromWholeJobsAlone) {
  StreamShares shares(2);
  for (int job = 0; job < 100 * kJobsPerLook; ++job) {
    shares.begin_job(1000, 1, kBytes);
    shares.tell(0, 1e-3);
    shares.end_job();
  }
  shares.begin_job(1000, 1, kBytes);
  EXPECT_EQ(shares.end_of(0), 500);
}

TEST(StreamShares, GiveEachRunOnce) {
  constexpr int kWorkers = 4;
  ThreadPool pool(kWorkers);
  StreamShares shares(kWorkers);
  for (int job = 0; job < 200; ++job) {
    const std::int64_t total = 37 + job % 5;
    std::vector<std::atomic<int>> taken(static_cast<std::size_t>(total));
    shares.begin_job(total, 2, kBytes);
    pool.parallel_for(kWorkers, [&](std::int64_t, int worker) {
      shares.run_one(worker, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) ++taken[static_cast<std::size_t>(i)];
      });
    });
    shares.end_job();
    for (const auto& count : taken) EXPECT_EQ(count, 1);
  }
}

// Also when one worker does the work of all.
TEST(StreamShares, TakeOverFromThoseWhoAreLate) {
  StreamShares shares(3);
  shares.begin_job(300, 1, kBytes);
  std::vector<std::int64_t> begins;
  for (int call = 0; call < 3; ++call)
    shares.run_one(1, [&](int, std::int64_t begin, std::int64_t) { begins.push_back(begin); });
  EXPECT_EQ(begins, (std::vector<std::int64_t>{100, 0, 200}));
}

// The clock is looked at in some jobs only; over many, a worker that is slow has less to do.
TEST(StreamShares, MeasureByThemselves) {
  StreamShares shares(2);
  for (int job = 0; job < 20 * kJobsPerLook; ++job) {
    shares.begin_job(100, 1, kBytes);
    for (const int worker : {0, 1})
      shares.run_one(worker, [&](int, std::int64_t, std::int64_t) {
        if (worker == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      });
    shares.end_job();
  }
  shares.begin_job(100, 1, kBytes);
  EXPECT_LT(shares.end_of(0), 45);
}

}  // namespace
}  // namespace ptrt
