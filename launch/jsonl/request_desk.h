// Rank 0's side of a run that draws its requests: takes deals of the dealer to the replicas' first ranks, of
// which this one is the first, and hears from them what is finished. Used by rank 0's result thread.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "launch/jsonl/request_dealer.h"
#include "launch/jsonl/request_inbox.h"
#include "launch/jsonl/result_collector.h"
#include "runtime/comm/track_comm.h"

namespace ptrt {

class RequestDesk {
 public:
  struct Hooks {
    // Gets lines that cannot be run, in the order of the file.
    std::function<void(std::span<const StreamedLine>)> rejected;
    // Once true, nothing is handed out any more.
    std::function<bool()> stop_requested;
  };

  // Every `replica_ranks`-th rank leads a replica; `own` is the inbox of the first. Both outlive the desk.
  RequestDesk(JobComm& job, RequestDealer dealer, RequestInbox& own, std::int64_t replicas,
              std::int64_t replica_ranks, Hooks hooks);

  // Hands out what is due, and tells every replica when nothing more will come. True when there was anything.
  bool turn();
  // Results that rank `from` has sent.
  void finished(std::span<const ResultCollector::Result> results, int from);
  // Rank `from` sends no more results. A replica that was not told so has been stopped, and the job with it.
  void left(int from);

 private:
  void hand_out(std::int64_t replica, std::vector<HeldLine> requests);
  void tell_the_end(std::int64_t replica);

  JobComm& job_;
  RequestDealer dealer_;
  RequestInbox& own_;
  std::int64_t replica_ranks_;
  Hooks hooks_;
  std::vector<std::vector<HeldLine>> runs_;  // by replica, to be handed out in this turn
  std::vector<bool> told_;                   // by replica: that nothing more will come
  std::vector<StreamedLine> rejected_;
};

}  // namespace ptrt
