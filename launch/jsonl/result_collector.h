// Takes finished requests off the decode loop: a thread on every replica's first rank writes them as JSON and
// sends them to rank 0, whose thread appends them to the journal.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "kernels/base/host_cores.h"
#include "launch/job/progress.h"
#include "runtime/comm/track_comm.h"
#include "runtime/serving/journal.h"
#include "runtime/serving/request.h"

namespace ptrt {

class ResultCollector {
 public:
  struct Result {
    std::int64_t line = 0;
    std::string json;
  };
  using Format = std::function<Result(const Completion&)>;

  // On rank 0 `journal` and `progress` receive the results of this rank and of `other_leaders` more ranks.
  // Elsewhere both are null and every result is posted to rank 0. The thread runs on `units`, not on the one
  // core that the starting thread may be bound to.
  ResultCollector(JobComm& job, Format format, Journal* journal, Progress* progress, int other_leaders,
                  const CpuSet& units);
  ~ResultCollector();
  ResultCollector(const ResultCollector&) = delete;
  ResultCollector& operator=(const ResultCollector&) = delete;

  // Called by the decode loop: queues the completion without waiting for files or messages. Rethrows an
  // error of the thread.
  void deliver(Completion&& completion);
  // Call after the last deliver(). Returns when all results are in the journal (rank 0) or sent to rank 0;
  // rethrows likewise.
  void finish();

 private:
  void work();
  bool take_local();
  bool take_posted();
  void store(const Result& result);
  void rethrow_error();

  JobComm& job_;
  Format format_;
  Journal* journal_;
  Progress* progress_;
  int leaders_open_;  // other leaders that may still post results
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Completion> queue_;
  bool closed_ = false;
  bool cancelled_ = false;
  std::exception_ptr error_;
  std::thread thread_;  // last member: it starts when the others are constructed
};

}  // namespace ptrt
