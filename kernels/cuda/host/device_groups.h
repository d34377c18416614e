// Groups of ranks on devices for one backend's stream: NCCL or emulated.
#pragma once

#include <memory>
#include <string>

#include "kernels/cuda/host/device_memory.h"
#include "kernels/cuda/host/replay_clock.h"
#include "kernels/device_collectives.h"

namespace ptrt::cuda {

class CudaGroups final : public DeviceGroups {
 public:
  CudaGroups(const Stream& stream, ReplayClock& clock) : stream_(stream), clock_(clock) {}
  std::string missing() const override;
  std::string make_id() override;
  std::size_t id_bytes() const override;
  std::unique_ptr<DeviceCollectives> join(const std::string& id, int rank, int size) override;
  std::unique_ptr<DeviceCollectives> emulate(int size, const LinkModel& link) override;
  std::unique_ptr<DeviceTimer> make_timer() override;
  void wait() override { stream_.wait(); }
  std::shared_ptr<std::byte[]> allocate_host(std::size_t bytes, const std::string& what) override {
    return allocate_pinned(bytes, what);
  }

 private:
  const Stream& stream_;
  ReplayClock& clock_;
};

}  // namespace ptrt::cuda
