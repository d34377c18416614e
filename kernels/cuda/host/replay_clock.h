// Times of what recorded steps hold, and of the device between them, by events on its own clock. A replay
// sets the events of its graph anew, so each step is recorded twice, for every other launch (turn()): those
// of a launch stand until the one after the next, before which they are read. Whoever launches has the
// results of the last but one by then, so reading waits for nothing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <memory>

#include "kernels/backend.h"
#include "kernels/cuda/host/device_memory.h"

namespace ptrt::cuda {

// Marks a place in a stream, with the time when the device came there.
class TimedEvent {
 public:
  TimedEvent();
  ~TimedEvent();
  TimedEvent(const TimedEvent&) = delete;
  TimedEvent& operator=(const TimedEvent&) = delete;
  // While the stream is recorded, as a node of the graph, which every replay passes.
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
  // While the step is recorded. `seconds` is what read() adds the stretch's time to.
  void begin_step(const Stream& stream) { begin_.record(stream); }
  void begin_stretch(const Stream& stream, std::shared_ptr<double> seconds);
  void end_stretch(const Stream& stream);

  // Of the last replay, which has run.
  void read() const;
  const TimedEvent& begin() const { return begin_; }

 private:
  struct Stretch {
    std::shared_ptr<double> seconds;
    TimedEvent begin, end;
  };
  TimedEvent begin_;
  std::deque<Stretch> stretches_;
};

// The replays of one stream.
class ReplayClock {
 public:
  static constexpr std::uint64_t kTurns = 2;
  explicit ReplayClock(const Stream& stream) : stream_(stream) {}

  // The events of the step that is being recorded; null while none is.
  RecordedEvents* recording() const { return recording_; }
  void set_recording(RecordedEvents* events) { recording_ = events; }

  // Around the launch of the graph with `events`, recorded in the turn of this launch. `is_new`: it was
  // recorded just now, which kept the device waiting.
  std::uint64_t turn() const { return launches_ % kTurns; }
  void before_launch();
  void launched(std::shared_ptr<const RecordedEvents> events, bool is_new);

  void begin_step();  // of any kind
  void end_step();    // with what was queued behind its graph
  // The step to come does not follow on those before.
  void rest() { open_ = false; }

  // Reads what has run; with `wait`, everything.
  void read(bool wait);
  ReplayTimes take_times();

 private:
  struct Launch {
    std::shared_ptr<const RecordedEvents> events;
    bool follows = false;  // on the launch before, with nothing between
  };
  // Of a launch; those of the one before the oldest in under_way_ still stand.
  TimedEvent& end_of(std::uint64_t launch) { return ends_[launch % (kTurns + 2)]; }
  void read_oldest();

  const Stream& stream_;
  RecordedEvents* recording_ = nullptr;
  std::deque<Launch> under_way_;  // at most kTurns
  std::uint64_t launches_ = 0;
  TimedEvent ends_[kTurns + 2];
  bool open_ = false;     // the step begun last is a replay
  bool follows_ = false;  // so was the one before it
  ReplayTimes times_;
};

}  // namespace ptrt::cuda
