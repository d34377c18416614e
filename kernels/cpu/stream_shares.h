// How a stream of weights is shared out among the workers of a pool: one run for each, as long as it has
// lately been fast. A core whose neighbours use the memory much may be a tenth slower than the others for
// seconds, and all of them wait for it at the end of every product.
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

  // Shares out [0, total); the runs begin at multiples of `quantum`. They are equal but for the workers'
  // paces.
  void split(std::int64_t total, std::int64_t quantum);

  // body(begin, end) for one run: this worker's own or, once that is taken, that of a worker who is late.
  // Every one of as many calls as there are workers gets another run.
  template <typename Body>
  void run_one(int worker, const Body& body) {
    Share& share = claim(worker);
    const bool mine = &share == &shares_[static_cast<std::size_t>(worker)];
    if (!mine || !observes_) return body(share.begin, share.end);
    const auto begin = Clock::now();
    body(share.begin, share.end);
    share.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  }

  // When all are done: takes the times of runs that were each done by their own worker into the paces.
  void finish();

  // For tests: the run of a worker, and a time for it.
  std::int64_t begin(int worker) const { return shares_[static_cast<std::size_t>(worker)].begin; }
  std::int64_t end(int worker) const { return shares_[static_cast<std::size_t>(worker)].end; }
  void set_seconds(int worker, double seconds) {
    shares_[static_cast<std::size_t>(worker)].seconds = seconds;
  }

 private:
  using Clock = std::chrono::steady_clock;

  struct alignas(64) Share {
    std::atomic<bool> taken = false;
    std::int64_t begin = 0, end = 0;
    double seconds = 0;  // that its own worker took; 0: not measured
    double pace = 1;     // seconds a unit, over the mean of all workers
  };

  Share& claim(int worker);

  std::vector<Share> shares_;
  std::uint32_t jobs_ = 0;
  bool observes_ = false;  // this job
};

}  // namespace ptrt
