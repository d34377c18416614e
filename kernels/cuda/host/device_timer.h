// Times stretches of a stream by pairs of events, read when they have happened.
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
  // `clock`: of the stream's recorded steps, which keep the events of the stretches in them.
  EventTimer(const Stream& stream, ReplayClock& clock);

  void begin() override;
  void end() override;
  double take_seconds(bool wait) override;

 private:
  struct Pair {
    TimedEvent begin, end;
  };
  Pair& pair(std::uint64_t number) { return ring_[number % ring_.size()]; }
  bool take_oldest(bool wait);

  const Stream& stream_;
  ReplayClock& clock_;
  std::vector<Pair> ring_;
  std::uint64_t begun_ = 0, taken_ = 0;  // stretches; those between are on their way
  std::shared_ptr<double> seconds_ = std::make_shared<double>(0);
};

}  // namespace ptrt::cuda
