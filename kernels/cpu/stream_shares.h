// How a stream of weights is shared out among the workers of a pool: one run for each, the longer the faster
// it has lately been. A core whose neighbours use the memory much may be slower than the others for seconds,
// and all of them wait for it at the end of every product.
//
// Only times decide what a worker takes, so no result may hang on it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <vector>

namespace ptrt {

class StreamShares {
 public:
  explicit StreamShares(int workers);

  // A job: shares out [0, total). Runs begin at multiples of `quantum` and are equal but for the paces.
  void begin_job(std::int64_t total, std::int64_t quantum);
  // When all its runs are done: takes the times of a job that was looked at into the paces, if each run was
  // done by its own worker.
  void end_job();

  // body(begin, end) for one run: this worker's own or, once that is taken, that of a worker who is late.
  // Each of as many calls as there are workers gets another one. Several threads may call at a time.
  template <typename Body>
  void run_one(int worker, const Body& body) {
    const int run = claim(worker);
    if (run != worker || !looks_) return body(begin_of(run), end_of(run));
    const auto begin = Clock::now();
    body(begin_of(run), end_of(run));
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
    double pace = 1;  // seconds a unit, over the mean of all workers
    double upto = 1;  // of a job, what its run and those before it take
  };

  int claim(int worker);
  void set_runs();

  std::vector<Worker> workers_;
  std::uint32_t job_ = 0;
  std::int64_t total_ = 0, quantum_ = 1;
  bool looks_ = false;  // at the clock, in this job
};

}  // namespace ptrt
