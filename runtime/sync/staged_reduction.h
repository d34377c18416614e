// The reduction of ranks on devices that cannot meet (several ranks on one GPU, no NCCL): through pinned
// memory of the hosts and the reduction between those. The same bits as the tree on the devices.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/sync/host_reduction.h"
#include "runtime/sync/reduction.h"

namespace ptrt {

class StagedReduction final : public Reduction {
 public:
  StagedReduction(TrackComm& comm, Backend& backend, StepState& state, std::int64_t parts,
                  std::int64_t max_values);

  void begin_step() override { host_sum_.begin_step(); }
  void sum(std::span<const float* const> local, std::int64_t count, float scale, const float* add_to,
           float* out) override;
  bool recordable() const override { return false; }
  std::string describe() const override { return "staged through the hosts' memory"; }

 private:
  Backend& backend_;
  DeviceGroups& groups_;
  std::int64_t max_values_;
  std::unique_ptr<Backend> host_;  // adds on the CPU
  HostReduction host_sum_;
  std::shared_ptr<std::byte[]> pinned_;     // [parts, max_values]
  std::shared_ptr<std::byte[]> on_device_;  // [max_values]
  std::vector<const float*> parts_;         // in pinned_
};

}  // namespace ptrt
