// Divides a stream of weights among the workers of a pool: one run each, longer for a worker that
// has lately been faster. A core whose neighbours use much memory bandwidth may be slower than the
// others for seconds, and all workers wait for it at the end of every product. Only streams of
// similar sizes share what was learnt: a worker that has read a little ahead gains more in a short
// stream than in a long one.
//
// Times decide what a worker takes, so no result may depend on it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

namespace ptrt {

class StreamShares {
 public:
  explicit StreamShares(int workers);

  // A job divides [0, total), which is `bytes` long. Runs begin at multiples of `quantum`; their
  // lengths differ only by the paces.
  void begin_job(std::int64_t total, std::int64_t quantum, std::int64_t bytes);
  // Called when all runs are done: updates the paces by the times of a job that was timed, if each
  // run was done by its own worker.
  void end_job();

  // body(run, begin, end) for one run: this worker's own or, if it is taken, that of a worker that
  // is late. Each of as many calls as there are workers gets a different run. Several threads may
  // call at a time.
  template <typename Body>
  void run_one(int worker, const Body& body) {
    const int run = claim(worker);
    if (run != worker || !looks_) return body(run, begin_of(run), end_of(run));
    const auto begin = Clock::now();
    body(run, begin_of(run), end_of(run));
    tell(run, std::chrono::duration<double>(Clock::now() - begin).count());
  }

  std::int64_t begin_of(int run) const { return run == 0 ? 0 : end_of(run - 1); }
  std::int64_t end_of(int run) const;
  // Records how long the run's own worker took for it.
  void tell(int run, double seconds);

 private:
  using Clock = std::chrono::steady_clock;

  // A line of memory for each, which others touch in few jobs.
  struct alignas(64) Worker {
    std::atomic<std::uint32_t> taken = 0;  // the job in which its run was last taken
    std::uint32_t told = 0;                // the job in which `seconds` was set
    double seconds = 0;
  };

  // Of one worker in streams of one size.
  struct Share {
    double pace = 1;  // seconds a unit, over the mean of all workers
    double upto = 1;  // of a job, what its run and those before it take
  };

  int claim(int worker);
  std::span<Share> shares_of(int size) {
    return std::span(shares_).subspan(static_cast<std::size_t>(size) * workers_.size(), workers_.size());
  }
  static void set_runs(std::span<Share> shares);

  std::vector<Worker> workers_;
  std::vector<Share> shares_;        // [sizes, workers]
  std::span<Share> now_;             // of the job's size
  std::vector<std::uint32_t> jobs_;  // [sizes] so far
  std::uint32_t job_ = 0;
  std::int64_t total_ = 0, quantum_ = 1;
  bool looks_ = false;  // at the clock, in this job
};

}  // namespace ptrt
