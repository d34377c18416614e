// Times stretches of a stream by pairs of events, read when they have happened.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/device_memory.h"
#include "kernels/device_collectives.h"

namespace ptrt::cuda {

class EventTimer final : public DeviceTimer {
 public:
  explicit EventTimer(const Stream& stream);
  ~EventTimer() override;
  EventTimer(const EventTimer&) = delete;
  EventTimer& operator=(const EventTimer&) = delete;

  void begin() override;
  void end() override;
  double take_seconds(bool wait) override;

 private:
  struct Pair {
    cudaEvent_t begin = nullptr, end = nullptr;
  };
  Pair& pair(std::uint64_t number) { return ring_[number % ring_.size()]; }
  bool take_oldest(bool wait);

  const Stream& stream_;
  std::vector<Pair> ring_;
  std::uint64_t begun_ = 0, taken_ = 0;  // stretches; those between are on their way
  bool open_ = false;
  double seconds_ = 0;
};

}  // namespace ptrt::cuda
