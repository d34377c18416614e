// The reduction between ranks with a device each: parts and sums never leave the devices, and sum() only
// queues work. What the host needs of a step, its header, goes between the hosts once a step.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device_collectives.h"
#include "runtime/sync/reduction.h"

namespace ptrt {

class DeviceReduction final : public Reduction {
 public:
  // With DeviceFusion::automatic, sums for which a device receives up to that much are gathered and added in
  // the tree: there the time is the collective's latency, which is no less for an all-reduce. For more, what
  // moves counts: 2 (n - 1) / n parts for the all-reduce, n - 1 for the gather.
  static constexpr std::int64_t kTreeBytes = std::int64_t{1} << 20;

  DeviceReduction(TrackComm& comm, Backend& backend, StepState& state, std::int64_t parts,
                  std::int64_t max_values, const ReductionOptions& options);
  ~DeviceReduction() override;

  void begin_step() override;
  void sum(std::span<const float* const> local, std::int64_t count, float scale, const float* add_to,
           float* out) override;
  float* send_buffer(std::int64_t count) override;
  std::span<const float* const> begin_exchange(std::span<const float* const> local,
                                               std::int64_t count) override;
  void end_exchange() override;
  bool recordable() const override { return true; }
  void settle() override;
  std::string describe() const override;

 private:
  bool adds_in_tree(std::int64_t count) const;
  std::int64_t all_parts() const { return parts_per_rank_ * comm_.size(); }
  std::int64_t gathered_values(std::int64_t max_values) const;

  TrackComm& comm_;
  Backend& backend_;
  StepState& state_;
  std::int64_t parts_per_rank_;
  DeviceFusion kind_;
  Watchdog* watchdog_;
  std::unique_ptr<DeviceCollectives> group_;
  std::unique_ptr<DeviceTimer> timer_;
  std::int64_t sent_bytes_ = 0;  // in the exchange under way
  float* send_ = nullptr;        // tree: [parts, count]; nccl: [count]
  float* recv_ = nullptr;        // tree: [ranks, parts, count]; nccl: [count]
  std::vector<StepHeader> headers_;
  std::vector<const float*> all_;  // parts of all ranks, or their sum, in recv_
};

}  // namespace ptrt
