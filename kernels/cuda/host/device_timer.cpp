#include "kernels/cuda/host/device_timer.h"

namespace ptrt::cuda {
namespace {

// More than the syncs of several steps, so that the oldest has long happened when its pair is needed again.
constexpr std::size_t kPairs = 2048;

}  // namespace

EventTimer::EventTimer(const Stream& stream, ReplayClock& clock)
    : stream_(stream), clock_(clock), ring_(kPairs) {}

void EventTimer::begin() {
  if (RecordedEvents* step = clock_.recording()) return step->begin_stretch(stream_, seconds_);
  if (begun_ - taken_ == ring_.size()) take_oldest(true);
  pair(begun_).begin.record(stream_);
}

void EventTimer::end() {
  if (RecordedEvents* step = clock_.recording()) return step->end_stretch(stream_);
  pair(begun_).end.record(stream_);
  begun_++;
}

bool EventTimer::take_oldest(bool wait) {
  const Pair& oldest = pair(taken_);
  if (wait)
    oldest.end.wait();
  else if (!oldest.end.passed())
    return false;
  *seconds_ += oldest.end.seconds_since(oldest.begin);
  taken_++;
  return true;
}

double EventTimer::take_seconds(bool wait) {
  clock_.read(wait);
  while (taken_ < begun_ && take_oldest(wait)) {
  }
  const double taken = *seconds_;
  *seconds_ = 0;
  return taken;
}

}  // namespace ptrt::cuda
