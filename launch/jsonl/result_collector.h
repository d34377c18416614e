// Takes finished requests off the decode loop: a thread on every replica's first rank writes them as JSON and
// brings them to rank 0, whose thread appends them to the journal.
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

  // On rank 0 `journal` and `progress` take what comes from here and from `other_leaders` more ranks.
  // Elsewhere both are null and everything is posted to rank 0. The thread runs on `units`, not on the one
  // core that the starting thread may be bound to.
  ResultCollector(JobComm& job, Format format, Journal* journal, Progress* progress, int other_leaders,
                  const CpuSet& units);
  ~ResultCollector();
  ResultCollector(const ResultCollector&) = delete;
  ResultCollector& operator=(const ResultCollector&) = delete;

  // From the decode loop: hands over, without waiting for files or messages. Rethrows what the thread ran
  // into.
  void deliver(Completion&& completion);
  // No more from here. Returns when all is in the journal (rank 0) or on its way there; rethrows likewise.
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
  int leaders_open_;  // other leaders that have not said that they are through
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Completion> queue_;
  bool closed_ = false;
  bool cancelled_ = false;
  std::exception_ptr error_;
  std::thread thread_;  // last: starts when all else is there
};

}  // namespace ptrt
