#include "runtime/serving/replica_signals.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "kernels/base/error.h"
#include "runtime/sync/step_header.h"

namespace ptrt {
namespace {

constexpr std::chrono::milliseconds kNap{20};  // so that a signal is noticed soon
constexpr int kCountShift = 8;                 // the bits below are for flags

}  // namespace

std::uint64_t ReplicaSignal::encode() const {
  return (stop ? kStopFlag : 0) | (last ? kLastFlag : 0) | static_cast<std::uint64_t>(count) << kCountShift;
}

ReplicaSignal ReplicaSignal::decode(std::uint64_t flags) {
  return {static_cast<std::int64_t>(flags >> kCountShift), (flags & kStopFlag) != 0,
          (flags & kLastFlag) != 0};
}

ReplicaSignals::ReplicaSignals(TrackComm& replica, bool is_leader, Clock::time_point start,
                               std::vector<double> arrivals_s, std::function<bool()> stop_requested)
    : replica_(replica),
      is_leader_(is_leader),
      start_(start),
      arrivals_s_(std::move(arrivals_s)),
      stop_requested_(std::move(stop_requested)) {
  PTRT_CHECK(std::ranges::is_sorted(arrivals_s_));
  if (!arrivals_s_.empty() && arrivals_s_.back() <= 0) arrivals_s_.clear();
}

double ReplicaSignals::seconds_since_start() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

ReplicaSignals::ReplicaSignals(TrackComm& replica, bool is_leader, RequestDraw& draw,
                               std::function<bool()> stop_requested)
    : replica_(replica),
      is_leader_(is_leader),
      start_(Clock::now()),
      draw_(&draw),
      stop_requested_(std::move(stop_requested)) {}

std::uint64_t ReplicaSignals::flags_to_send() {
  return flags(std::chrono::milliseconds(0));
}

std::uint64_t ReplicaSignals::flags(std::chrono::milliseconds patience) {
  if (!is_leader_) return 0;
  ReplicaSignal signal;
  if (draw_ != nullptr) {
    signal.count = draw_->take(patience);
    signal.last = draw_->ended();
  } else {
    signal.count = std::ranges::upper_bound(arrivals_s_, seconds_since_start()) - arrivals_s_.begin();
  }
  signal.stop = stop_requested_ && stop_requested_();
  return signal.encode();
}

std::vector<Request> ReplicaSignals::drawn() {
  if (draw_ == nullptr || current_.count == 0) return {};
  return draw_->share(std::exchange(current_.count, 0));
}

void ReplicaSignals::wait() {
  if (draw_ == nullptr) {
    // Every rank knows when the next request is due, and sleeps by its own clock.
    const double now = seconds_since_start();
    const auto next = std::ranges::upper_bound(arrivals_s_, now);
    const std::chrono::duration<double> left(next == arrivals_s_.end() ? 0 : *next - now);
    std::this_thread::sleep_for(
        std::clamp<std::chrono::duration<double>>(left, std::chrono::seconds(0), kNap));
  }
  const std::uint64_t mine = flags(kNap);
  std::vector<std::uint64_t> all(static_cast<std::size_t>(replica_.size()));
  replica_.all_gather(&mine, all.data(), sizeof mine);
  receive(all[0]);
}

}  // namespace ptrt
