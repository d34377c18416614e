// Takes finished requests off the decode loop: a thread on every replica's first rank writes them as JSON and
// sends them to rank 0, whose thread stores them, in the journal for instance. What was delivered is not lost
// when this rank fails: the destructor brings it there.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "kernels/base/host_cores.h"
#include "runtime/comm/track_comm.h"
#include "runtime/serving/request.h"

namespace ptrt {

class ResultCollector {
 public:
  struct Result {
    std::int64_t line = 0;
    std::string json;
  };
  using Format = std::function<Result(const Completion&)>;
  using Store = std::function<void(const Result&)>;

  // On rank 0 `store` receives the results of this rank and of `other_leaders` more ranks, on the thread.
  // Elsewhere it is empty and every result is posted to rank 0. The thread runs on `units`, not on the one core
  // that the starting thread may be bound to.
  ResultCollector(JobComm& job, Format format, Store store, int other_leaders, const CpuSet& units);
  // Without finish(), when this rank failed: brings what was delivered, and on rank 0 what others have sent so
  // far, to the store. Waits for other ranks for two seconds at most, and for none that still compute.
  ~ResultCollector();
  ResultCollector(const ResultCollector&) = delete;
  ResultCollector& operator=(const ResultCollector&) = delete;

  // Called by the decode loop: queues the completion without waiting for files or messages. Rethrows an
  // error of the thread.
  void deliver(Completion&& completion);
  // Call after the last deliver(). Returns when all results are stored (rank 0) or sent to rank 0;
  // rethrows likewise.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  enum class State { open, closed, abandoned };

  void work();
  bool is_over(bool took_some);
  void close(State how);
  bool give_up() const;
  bool take_local();
  bool take_posted();
  void keep_or_post(const Result& result);
  void post(const std::string& message, JobComm::Post until);
  void rethrow_error();

  JobComm& job_;
  Format format_;
  Store store_;
  int leaders_open_;  // other leaders that may still post results
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Completion> queue_;
  std::atomic<State> state_ = State::open;
  std::atomic<Clock::time_point> abandoned_at_ = Clock::time_point{};
  Clock::time_point last_taken_;  // by the thread, local or posted
  std::exception_ptr error_;
  std::thread thread_;  // last member: it starts when the others are constructed
};

}  // namespace ptrt
