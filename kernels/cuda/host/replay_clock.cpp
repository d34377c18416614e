#include "kernels/cuda/host/replay_clock.h"

#include "kernels/base/error.h"
#include "kernels/cuda/base/cuda_check.h"

namespace ptrt::cuda {

TimedEvent::TimedEvent() {
  PTRT_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDefault));
}
TimedEvent::~TimedEvent() {
  cudaEventDestroy(event_);
}

void TimedEvent::record(const Stream& stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  PTRT_CUDA_CHECK(cudaStreamIsCapturing(stream.get(), &status));
  const bool captured = status != cudaStreamCaptureStatusNone;
  PTRT_CUDA_CHECK(cudaEventRecordWithFlags(event_, stream.get(),
                                           captured ? cudaEventRecordExternal : cudaEventRecordDefault));
}

bool TimedEvent::passed() const {
  const cudaError_t status = cudaEventQuery(event_);
  if (status == cudaErrorNotReady) return false;
  check_cuda(status, "cudaEventQuery", __FILE__, __LINE__);
  return true;
}

void TimedEvent::wait() const {
  PTRT_CUDA_CHECK(cudaEventSynchronize(event_));
}

double TimedEvent::seconds_since(const TimedEvent& earlier) const {
  float milliseconds = 0;
  PTRT_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, earlier.event_, event_));
  return 1e-3 * static_cast<double>(milliseconds);
}

void RecordedEvents::begin_stretch(const Stream& stream, std::shared_ptr<double> seconds) {
  Stretch& stretch = stretches_.emplace_back();
  stretch.seconds = std::move(seconds);
  stretch.begin.record(stream);
}

void RecordedEvents::end_stretch(const Stream& stream) {
  PTRT_CHECK(!stretches_.empty());
  stretches_.back().end.record(stream);
}

void RecordedEvents::read() const {
  for (const Stretch& stretch : stretches_) *stretch.seconds += stretch.end.seconds_since(stretch.begin);
}

void ReplayClock::before_launch() {
  while (under_way_.size() >= kTurns) {
    end_of(launches_ - under_way_.size()).wait();
    read_oldest();
  }
}

void ReplayClock::launched(std::shared_ptr<const RecordedEvents> events, bool is_new) {
  PTRT_CHECK(under_way_.size() < kTurns);
  under_way_.push_back({std::move(events), follows_ && !is_new});
  end_of(launches_++).record(stream_);
  open_ = true;
}

void ReplayClock::begin_step() {
  follows_ = open_;
  open_ = false;
}

void ReplayClock::end_step() {
  if (open_) end_of(launches_ - 1).record(stream_);
}

void ReplayClock::read(bool wait) {
  while (!under_way_.empty()) {
    const TimedEvent& end = end_of(launches_ - under_way_.size());
    if (wait)
      end.wait();
    else if (!end.passed())
      return;
    read_oldest();
  }
}

void ReplayClock::read_oldest() {
  const std::uint64_t number = launches_ - under_way_.size();
  const Launch oldest = std::move(under_way_.front());
  under_way_.pop_front();
  oldest.events->read();
  if (!oldest.follows) return;
  times_.idle_s += oldest.events->begin().seconds_since(end_of(number - 1));
  times_.busy_s += end_of(number).seconds_since(oldest.events->begin());
}

ReplayTimes ReplayClock::take_times() {
  read(true);
  const ReplayTimes taken = times_;
  times_ = {};
  return taken;
}

}  // namespace ptrt::cuda
