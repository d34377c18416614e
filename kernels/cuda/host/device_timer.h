// Measures intervals of a stream with pairs of events, which are read after they have passed.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cuda/host/device_memory.h"
#include "kernels/cuda/host/replay_clock.h"
#include "kernels/device_collectives.h"

namespace ptrt::cuda {

class EventTimer final : public DeviceTimer {
 public:
  // `clock`: of the stream's recorded steps, which own the events of their intervals.
  EventTimer(const Stream& stream, ReplayClock& clock);

  void begin() override;
  void end() override;
  double take_seconds(bool wait) override;

 private:
  struct Pair {
    TimedEvent begin, end;
  };
  Pair& pair(std::uint64_t number) { return ring_[number % ring_.size()]; }
  bool read_oldest(bool wait);

  const Stream& stream_;
  ReplayClock& clock_;
  std::vector<Pair> ring_;
  std::uint64_t recorded_ = 0, read_ = 0;  // intervals so far
  std::shared_ptr<double> seconds_ = std::make_shared<double>(0);
};

}  // namespace ptrt::cuda
