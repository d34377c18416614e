#include "kernels/cuda/host/device_timer.h"

namespace ptrt::cuda {
namespace {

// More than the syncs of several steps, so that the oldest pair has passed before it is reused.
constexpr std::size_t kPairs = 2048;

}  // namespace

EventTimer::EventTimer(const Stream& stream, ReplayClock& clock)
    : stream_(stream), clock_(clock), ring_(kPairs) {}

void EventTimer::begin() {
  if (RecordedEvents* step = clock_.recording()) return step->begin_interval(stream_, seconds_);
  if (recorded_ - read_ == ring_.size()) read_oldest(true);
  pair(recorded_).begin.record(stream_);
}

void EventTimer::end() {
  if (RecordedEvents* step = clock_.recording()) return step->end_interval(stream_);
  pair(recorded_).end.record(stream_);
  recorded_++;
}

bool EventTimer::read_oldest(bool wait) {
  const Pair& oldest = pair(read_);
  if (wait)
    oldest.end.wait();
  else if (!oldest.end.passed())
    return false;
  *seconds_ += oldest.end.seconds_since(oldest.begin);
  read_++;
  return true;
}

double EventTimer::take_seconds(bool wait) {
  clock_.read(wait);
  while (read_ < recorded_ && read_oldest(wait)) {
  }
  const double taken = *seconds_;
  *seconds_ = 0;
  return taken;
}

}  // namespace ptrt::cuda
