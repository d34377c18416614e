// Takes finished requests off the decode loop: a thread on every replica's first rank writes them as JSON and
// sends them to rank 0, whose thread stores them, in the journal for instance. What was delivered is not lost
// when this rank fails: the destructor brings it there.
//
// The same threads carry requests the other way, where a run draws them (launch/jsonl/request_dealer.h).
// Results that are there at once travel and are stored together, up to a bound.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kernels/base/host_cores.h"
#include "runtime/comm/track_comm.h"
#include "runtime/requests/request.h"

namespace ptrt {

class ResultCollector {
 public:
  struct Result {
    std::int64_t line = 0;
    std::string json;
  };
  // What the thread calls; the functions must outlive it.
  struct Hooks {
    std::function<Result(const Completion&)> format;
    // On rank 0: receives the results of this rank and of the other leaders; `from` is the rank that has made
    // them. Empty elsewhere: every result is posted to rank 0.
    std::function<void(std::span<const Result> results, int from)> store = {};
    // On rank 0, may be empty: what else there is to do now, such as to deal requests. True when that was
    // anything.
    std::function<bool()> turn = {};
    // On rank 0, may be empty: whether turn() may find something to do although nothing was delivered or sent.
    std::function<bool()> awaits_input = {};
    // On rank 0, may be empty: another leader has posted its last result, and gets no more messages but one.
    std::function<void(int from)> left = {};
    // On other leaders, may be empty: takes a message of rank 0. True when it was the last one, which the
    // thread waits for before it ends.
    std::function<bool(std::string_view message)> order = {};
    // May be empty: the thread ends with this error.
    std::function<void(std::exception_ptr)> failed = {};
  };

  // On rank 0 `other_leaders` more ranks post results. The thread runs on `units`, not on the one core that
  // the starting thread may be bound to.
  ResultCollector(JobComm& job, Hooks hooks, int other_leaders, const CpuSet& units);
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
  bool take_mail();
  bool take_turn();
  void take_results(const std::string& message, int from);
  void take_leave(int from);
  void post(const std::string& message, JobComm::Post until);
  void rethrow_error();

  JobComm& job_;
  Hooks hooks_;
  int leaders_open_;    // other leaders that may still post results
  bool awaits_orders_;  // rank 0 may still send some
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Completion> queue_;
  std::vector<Completion> taken_;  // of the queue, by the thread
  std::vector<Result> results_;    // of those, or of a message
  std::atomic<State> state_ = State::open;
  std::atomic<Clock::time_point> abandoned_at_ = Clock::time_point{};
  Clock::time_point last_taken_;  // by the thread, local or posted
  std::exception_ptr error_;
  std::thread thread_;  // last member: it starts when the others are constructed
};

}  // namespace ptrt
