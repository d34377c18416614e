// What depends on a clock, a signal or a message during a run: which requests there are, and whether
// to stop. The replica's first rank decides, and all its ranks adopt that at the end of the same step.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/comm/track_comm.h"
#include "runtime/requests/request_draw.h"

namespace ptrt {

// What a rank sends in StepHeader::flags.
struct ReplicaSignal {
  // Of requests that are known from the start: how many have arrived, in that order. Of a run that draws
  // them: the bytes of those that are new with this step (RequestDraw).
  std::int64_t count = 0;
  bool stop = false;
  bool last = false;  // no more requests will be drawn

  // kStopFlag, kLastFlag, and above the flags (8 bits) the count.
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
  // For a run that draws its requests; `draw` outlives this object.
  ReplicaSignals(TrackComm& replica, bool is_leader, RequestDraw& draw, std::function<bool()> stop_requested);

  // The flags to send with a step, once a step. Ranks other than the leader send none of their own.
  std::uint64_t flags_to_send();
  // Adopts the leader's flags.
  void receive(std::uint64_t flags) { current_ = ReplicaSignal::decode(flags); }
  // Without a step to run: sleeps until the next arrival is due or requests have come, but not for long,
  // then exchanges and adopts the leader's flags. Collective over the replica.
  void wait();

  // As the leader's flags last said.
  bool stop() const { return current_.stop; }
  std::int64_t arrived() const { return current_.count; }
  bool may_draw_more() const { return draw_ != nullptr && !current_.last; }
  // The requests that are new with the flags last received, the same on every rank. Collective over the
  // replica where there are any.
  std::vector<Request> drawn();
  // Whether any request arrives after the start; if not, all have arrived and arrived() says
  // nothing.
  bool has_arrivals() const { return !arrivals_s_.empty(); }

 private:
  double seconds_since_start() const;
  std::uint64_t flags(std::chrono::milliseconds patience);

  TrackComm& replica_;
  bool is_leader_;
  Clock::time_point start_;
  std::vector<double> arrivals_s_;  // empty: all have arrived
  RequestDraw* draw_ = nullptr;
  std::function<bool()> stop_requested_;
  ReplicaSignal current_;
};

}  // namespace ptrt
