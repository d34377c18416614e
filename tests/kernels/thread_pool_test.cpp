#include "kernels/cpu/host/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

TEST(ThreadPool, RefusesBadNumbersOfThreads) {
  for (const int threads : {0, -1, 1025}) EXPECT_THROW(ThreadPool{threads}, Error) << threads;
}

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const std::int64_t tasks : {0, 1, 2, 3, 10, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
      pool.parallel_for(tasks, [&](std::int64_t task, int worker) {
        EXPECT_GE(worker, 0);
        EXPECT_LT(worker, threads);
        ++runs[static_cast<std::size_t>(task)];
      });
      for (const auto& count : runs) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPool, WorkersRunOnTheirCores) {
  const std::vector<CpuSet> allowed = allowed_cores();
  std::thread caller([&] {
    if (!bind_this_thread(allowed.front())) GTEST_SKIP() << "binding is not permitted here";
    std::vector<CpuSet> cores;
    for (std::size_t worker = 0; worker < 4; ++worker) cores.push_back(allowed[worker % allowed.size()]);
    ThreadPool pool(4, cores);
    std::atomic<int> strays = 0;
    for (int job = 0; job < 50; ++job)
      pool.parallel_for(40, [&](std::int64_t, int worker) {
        if (allowed_cores() != std::vector<CpuSet>{cores[static_cast<std::size_t>(worker)]}) ++strays;
      });
    EXPECT_EQ(strays.load(), 0);
  });
  caller.join();
  EXPECT_EQ(allowed_cores(), allowed) << "of the thread beside";
}

TEST(ThreadPool, CoresThatCannotBeHadDoNoHarm) {
  ThreadPool pool(3, {{100000}, {100001}, {100002}});
  std::atomic<int> runs = 0;
  pool.parallel_for(100, [&](std::int64_t, int) { ++runs; });
  EXPECT_EQ(runs.load(), 100);
}

TEST(ThreadPool, SpinsOnlyWhereEachThreadHasACore) {
  const std::vector<CpuSet> cores = allowed_cores();
  EXPECT_TRUE(ThreadPool(1).spins());
  EXPECT_FALSE(ThreadPool(1000).spins());
  EXPECT_TRUE(ThreadPool(static_cast<int>(cores.size()), cores).spins());
  EXPECT_FALSE(ThreadPool(1, {}, true).spins());
  EXPECT_FALSE(ThreadPool(static_cast<int>(cores.size()), cores, true).spins());
}

// Asleep between jobs, each of which must wake all.
TEST(ThreadPool, RunsWithoutSpinning) {
  for (const int threads : {2, 5}) {
    ThreadPool pool(threads, {}, true);
    for (int job = 0; job < 3000; ++job) {
      std::atomic<std::int64_t> sum = 0;
      pool.parallel_for(6, [&](std::int64_t task, int) { sum += task; });
      ASSERT_EQ(sum.load(), 15);
    }
  }
}

// Many short jobs one after the other: a worker that comes late must not touch the next job.
TEST(ThreadPool, ManyShortJobs) {
  for (const int threads : {2, 5}) {
    ThreadPool pool(threads);
    std::vector<std::int64_t> sums(static_cast<std::size_t>(threads) * 16);
    for (int job = 0; job < 5000; ++job) {
      const std::int64_t tasks = 1 + job % 9;
      std::fill(sums.begin(), sums.end(), 0);
      pool.parallel_for(tasks, [&](std::int64_t task, int worker) {
        sums[static_cast<std::size_t>(worker) * 16] += task + job;
      });
      const std::int64_t total = std::accumulate(sums.begin(), sums.end(), std::int64_t{0});
      ASSERT_EQ(total, tasks * (tasks - 1) / 2 + tasks * job);
    }
  }
}

// Empty jobs of changing length: a worker that still looks at a used-up job while the next, longer one is
// being set up must not claim a task of it.
TEST(ThreadPool, LateWorkersClaimNothing) {
  ThreadPool pool(2);
  for (int job = 0; job < 1000000; ++job) {
    const std::int64_t tasks = job % 2 == 0 ? 2 : 7;
    std::atomic<std::int64_t> runs = 0, beyond = 0;
    pool.parallel_for(tasks, [&](std::int64_t task, int) {
      ++runs;
      if (task >= tasks) ++beyond;
    });
    ASSERT_EQ(runs.load(), tasks) << "job " << job;
    ASSERT_EQ(beyond.load(), 0) << "job " << job;
  }
}

TEST(ThreadPool, ContinuesAloneOnceStopped) {
  ThreadPool pool(3);
  pool.stop();
  EXPECT_EQ(pool.threads(), 1);
  std::atomic<int> runs = 0;
  pool.parallel_for(10, [&](std::int64_t, int worker) {
    EXPECT_EQ(worker, 0);
    ++runs;
  });
  EXPECT_EQ(runs.load(), 10);
}

TEST(ThreadPool, WakesAfterSleep) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> runs = 0;
    pool.parallel_for(20, [&](std::int64_t, int) { ++runs; });
    EXPECT_EQ(runs.load(), 20);
  }
}

TEST(ThreadPool, ThrowsATasksException) {
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 200; ++round) {
      std::string message;
      try {
        pool.parallel_for(50, [&](std::int64_t task, int) {
          if (task % 10 == 7) throw std::runtime_error("task failed");
        });
      } catch (const std::runtime_error& error) {
        message = error.what();
      }
      ASSERT_EQ(message, "task failed");
      std::atomic<int> runs = 0;
      pool.parallel_for(10, [&](std::int64_t, int) { ++runs; });
      ASSERT_EQ(runs.load(), 10) << "the pool works on after an exception";
    }
  }
}

TEST(ThreadPool, PoolsSideBySide) {
  std::vector<std::thread> callers;
  std::atomic<std::int64_t> total = 0;
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([&total] {
      ThreadPool pool(3);
      for (int job = 0; job < 300; ++job)
        pool.parallel_for(7, [&](std::int64_t task, int) { total += task; });
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total.load(), 3 * 300 * 21);
}

}  // namespace
}  // namespace ptrt
