#include "runtime/serving/replica_signals.h"

#include <algorithm>
#include <thread>

#include "kernels/base/error.h"
#include "runtime/sync/step_header.h"

namespace ptrt {
namespace {

constexpr int kArrivedShift = 8;  // the bits below are for flags

}  // namespace

std::uint64_t ReplicaSignal::encode() const {
  return (stop ? kStopFlag : 0) | static_cast<std::uint64_t>(arrived) << kArrivedShift;
}

ReplicaSignal ReplicaSignal::decode(std::uint64_t flags) {
  return {static_cast<std::int64_t>(flags >> kArrivedShift), (flags & kStopFlag) != 0};
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

std::uint64_t ReplicaSignals::flags_to_send() const {
  if (!is_leader_) return 0;
  const auto next = std::ranges::upper_bound(arrivals_s_, seconds_since_start());
  return ReplicaSignal{next - arrivals_s_.begin(), stop_requested_ && stop_requested_()}.encode();
}

void ReplicaSignals::wait() {
  constexpr double kNap = 0.02;  // seconds, so that a signal is noticed soon
  // Every rank knows when the next request is due, and sleeps by its own clock.
  const double now = seconds_since_start();
  const auto next = std::ranges::upper_bound(arrivals_s_, now);
  const double left = next == arrivals_s_.end() ? 0 : *next - now;
  std::this_thread::sleep_for(std::chrono::duration<double>(std::clamp(left, 0.0, kNap)));
  const std::uint64_t mine = flags_to_send();
  std::vector<std::uint64_t> all(static_cast<std::size_t>(replica_.size()));
  replica_.all_gather(&mine, all.data(), sizeof mine);
  receive(all[0]);
}

}  // namespace ptrt
