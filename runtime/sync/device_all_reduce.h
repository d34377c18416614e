// The all-reduce of ranks with a device each: parts and sums never leave the devices, and sum()
// only queues work. The hosts exchange the step's header once a step.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device_collectives.h"
#include "runtime/sync/all_reduce.h"

namespace ptrt {

class DeviceAllReduce final : public AllReduce {
 public:
  // DeviceFusion::automatic gathers and adds in the tree as long as a device receives at most so
  // many bytes: there latency dominates, and an all-reduce has no less of it. Beyond, the bytes
  // moved count: the all-reduce moves 2 (n - 1) / n parts, the gather n - 1.
  static constexpr std::int64_t kTreeBytes = std::int64_t{1} << 20;

  // What it holds on each device, in float32 values: parts to send, and what is received.
  static std::int64_t buffer_values(DeviceFusion kind, std::int64_t ranks, std::int64_t parts,
                                    std::int64_t max_values);

  DeviceAllReduce(TrackComm& comm, Backend& backend, StepState& state, std::int64_t parts,
                  std::int64_t max_values, const AllReduceOptions& options);
  ~DeviceAllReduce() override;

  void start_step() override;
  void sum(std::span<const float* const> local, std::int64_t count, float scale, const float* add_to,
           float* out) override;
  float* send_buffer(std::int64_t count) override;
  std::span<const float* const> exchange(std::span<const float* const> local, std::int64_t count) override;
  void consumed() override { timer_->end(); }
  bool recordable() const override { return true; }
  DeviceCollectives* device_group() override { return group_.get(); }
  void settle() override;
  std::string describe() const override;

 private:
  bool adds_in_tree(std::int64_t count) const;
  void count_sync(std::int64_t bytes_sent);
  std::int64_t all_parts() const { return parts_per_rank_ * comm_.size(); }

  TrackComm& comm_;
  Backend& backend_;
  StepState& state_;
  std::int64_t parts_per_rank_;
  DeviceFusion kind_;
  Watchdog* watchdog_;
  std::unique_ptr<DeviceCollectives> group_;
  std::unique_ptr<DeviceTimer> timer_;
  float* send_ = nullptr;  // tree: [parts, count]; nccl: [count]
  float* recv_ = nullptr;  // tree: [ranks, parts, count]; nccl: [count]
  std::vector<StepHeader> headers_;
  std::vector<const float*> all_;  // parts of all ranks, or their sum, in recv_
};

}  // namespace ptrt
