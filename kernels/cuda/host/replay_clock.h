// Measures intervals within recorded steps, and the device's busy and idle time, by events on the
// device's own clock. A replay records its graph's events again, so each step is captured twice and
// launches alternate between the two graphs (buffer()). The events of a launch are read before the
// second launch after it. By then the caller has that launch's results, so that reading does not
// wait.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <memory>

#include "kernels/cuda/host/device_memory.h"
#include "kernels/step_execution.h"

namespace ptrt::cuda {

// A point in a stream, with the time at which the device reached it.
class TimedEvent {
 public:
  TimedEvent();
  ~TimedEvent();
  TimedEvent(const TimedEvent&) = delete;
  TimedEvent& operator=(const TimedEvent&) = delete;
  // While the stream is captured, the event becomes a node of the graph and every replay records
  // it.
  void record(const Stream& stream);
  bool passed() const;
  void wait() const;
  double seconds_since(const TimedEvent& earlier) const;  // both have passed

 private:
  cudaEvent_t event_ = nullptr;
};

// The events inside one recorded step.
class RecordedEvents {
 public:
  // Called while the step is recorded. read() adds the interval's time to `seconds`.
  void mark_step_start(const Stream& stream) { begin_.record(stream); }
  void begin_interval(const Stream& stream, std::shared_ptr<double> seconds);
  void end_interval(const Stream& stream);

  // Reads the last replay, which has run.
  void read() const;
  const TimedEvent& begin() const { return begin_; }

 private:
  struct Interval {
    std::shared_ptr<double> seconds;
    TimedEvent begin, end;
  };
  TimedEvent begin_;
  std::deque<Interval> intervals_;
};

// The replays of one stream.
class ReplayClock {
 public:
  static constexpr std::uint64_t kBuffers = 2;
  explicit ReplayClock(const Stream& stream) : stream_(stream) {}

  // The events of the step that is being recorded; null while none is.
  RecordedEvents* recording() const { return recording_; }
  void set_recording(RecordedEvents* events) { recording_ = events; }

  // Called before and after the launch of the graph with `events`, which was recorded for this
  // launch's buffer(). `is_new`: it was recorded just now, while the device waited.
  std::uint64_t buffer() const { return launches_ % kBuffers; }
  void before_launch();
  void launched(std::shared_ptr<const RecordedEvents> events, bool is_new);

  void mark_step_start();  // of any step, recorded or not
  void mark_step_end();    // after everything that the step queues after its graph
  // The device becomes idle: the time until the next step is not counted.
  void mark_idle() { open_ = false; }

  // Reads the launches that have run; with `wait`, all of them.
  void read(bool wait);
  ReplayTimes take_times();

 private:
  struct Launch {
    std::shared_ptr<const RecordedEvents> events;
    bool follows = false;  // directly after the preceding launch
  };
  // The end of a launch; valid back to the one before the oldest in flight.
  TimedEvent& end_of(std::uint64_t launch) { return ends_[launch % (kBuffers + 2)]; }
  void read_oldest();

  const Stream& stream_;
  RecordedEvents* recording_ = nullptr;
  std::deque<Launch> in_flight_;  // at most kBuffers
  std::uint64_t launches_ = 0;
  TimedEvent ends_[kBuffers + 2];
  bool open_ = false;     // the current step is a replay
  bool follows_ = false;  // so was the step before it
  ReplayTimes times_;
};

}  // namespace ptrt::cuda
