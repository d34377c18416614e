// How a stream of weights is shared out among the workers of a pool: one run for each, the longer the faster
// it has lately been. A core whose neighbours use the memory much may be slower than the others for seconds,
// and all of them wait for it at the end of every product. Streams of like sizes learn from one another
// alone: a worker that has read a little ahead is faster in a short one than in a long one.
//
// Only times decide what a worker takes, so no result may hang on it.
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

  // A job: shares out [0, total), which are so many bytes. Runs begin at multiples of `quantum` and are equal
  // but for the paces.
  void begin_job(std::int64_t total, std::int64_t quantum, std::int64_t bytes);
  // When all its runs are done: takes the times of a job that was looked at into the paces, if each run was
  // done by its own worker.
  void end_job();

  // body(run, begin, end) for one run: this worker's own or, once that is taken, that of a worker who is
  // late. Each of as many calls as there are workers gets another one. Several threads may call at a time.
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
  // That the run's own worker took so long for it.
  void tell(int run, double seconds);

 private:
  using Clock = std::chrono::steady_clock;

  // A line of memory for each, which others touch in few jobs.
  struct alignas(64) Worker {
    std::atomic<std::uint32_t> taken = 0;  // the job in which its run was last taken
    std::uint32_t told = 0;                // likewise, of `seconds`
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
