#include "kernels/cuda/host/replay_clock.h"

#include "kernels/base/error.h"
#include "kernels/cuda/base/cuda_check.h"

namespace ptrt::cuda {

TimedEvent::TimedEvent() {
  PTRT_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDefault));
}
TimedEvent::~TimedEvent() {
  if (!device_memory_left()) cudaEventDestroy(event_);
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

void RecordedEvents::begin_interval(const Stream& stream, std::shared_ptr<double> seconds) {
  Interval& interval = intervals_.emplace_back();
  interval.seconds = std::move(seconds);
  interval.begin.record(stream);
}

void RecordedEvents::end_interval(const Stream& stream) {
  PTRT_CHECK(!intervals_.empty());
  intervals_.back().end.record(stream);
}

void RecordedEvents::read() const {
  for (const Interval& interval : intervals_) *interval.seconds += interval.end.seconds_since(interval.begin);
}

void ReplayClock::before_launch() {
  while (in_flight_.size() >= kBuffers) {
    end_of(launches_ - in_flight_.size()).wait();
    read_oldest();
  }
}

void ReplayClock::launched(std::shared_ptr<const RecordedEvents> events, bool is_new) {
  PTRT_CHECK(in_flight_.size() < kBuffers);
  in_flight_.push_back({std::move(events), follows_ && !is_new});
  end_of(launches_++).record(stream_);
  open_ = true;
}

void ReplayClock::mark_step_start() {
  follows_ = open_;
  open_ = false;
}

void ReplayClock::mark_step_end() {
  if (open_) end_of(launches_ - 1).record(stream_);
}

void ReplayClock::read(bool wait) {
  while (!in_flight_.empty()) {
    const TimedEvent& end = end_of(launches_ - in_flight_.size());
    if (wait)
      end.wait();
    else if (!end.passed())
      return;
    read_oldest();
  }
}

void ReplayClock::read_oldest() {
  const std::uint64_t number = launches_ - in_flight_.size();
  const Launch oldest = std::move(in_flight_.front());
  in_flight_.pop_front();
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
