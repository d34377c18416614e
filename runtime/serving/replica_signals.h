// What depends on a clock or a signal during a run: which requests have arrived, and whether to
// stop. The replica's first rank decides, and all its ranks adopt that at the end of the same step.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/comm/track_comm.h"

namespace ptrt {

// What a rank sends in StepHeader::flags.
struct ReplicaSignal {
  std::int64_t arrived = 0;  // requests so far, in the order of their arrival
  bool stop = false;

  // kStopFlag, and above the flags (8 bits) the arrivals.
  std::uint64_t encode() const;
  static ReplicaSignal decode(std::uint64_t flags);
};

class ReplicaSignals {
 public:
  using Clock = std::chrono::steady_clock;
  // For one run. `replica`: all ranks of the replica. `is_leader`: whether this is its first rank.
  // `arrivals_s`: ascending, one a request, in seconds since `start`. `stop_requested` may be
  // empty; it is called on the leader alone.
  ReplicaSignals(TrackComm& replica, bool is_leader, Clock::time_point start, std::vector<double> arrivals_s,
                 std::function<bool()> stop_requested);

  // The flags to send with a step. Ranks other than the leader send none of their own.
  std::uint64_t flags_to_send() const;
  // Adopts the leader's flags.
  void receive(std::uint64_t flags) { current_ = ReplicaSignal::decode(flags); }
  // Without a step to run: sleeps until the next arrival is due, but not for long, then exchanges
  // and adopts the leader's flags. Collective over the replica.
  void wait();

  // As the leader's flags last said.
  bool stop() const { return current_.stop; }
  std::int64_t arrived() const { return current_.arrived; }
  // Whether any request arrives after the start; if not, all have arrived and arrived() says
  // nothing.
  bool has_arrivals() const { return !arrivals_s_.empty(); }

 private:
  double seconds_since_start() const;

  TrackComm& replica_;
  bool is_leader_;
  Clock::time_point start_;
  std::vector<double> arrivals_s_;  // empty: all have arrived
  std::function<bool()> stop_requested_;
  ReplicaSignal current_;
};

}  // namespace ptrt
