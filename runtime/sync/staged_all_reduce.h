// The all-reduce of ranks whose devices cannot communicate (several ranks on one GPU, no NCCL):
// through pinned host memory and the all-reduce between the hosts. The same bits as the tree on the
// devices.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/sync/all_reduce.h"
#include "runtime/sync/host_all_reduce.h"

namespace ptrt {

class StagedAllReduce final : public AllReduce {
 public:
  StagedAllReduce(TrackComm& comm, Backend& backend, StepState& state, std::int64_t parts,
                  std::int64_t max_values);

  void start_step() override { host_all_reduce_.start_step(); }
  void sum(std::span<const float* const> local, std::int64_t count, float scale, const float* add_to,
           float* out) override;
  bool recordable() const override { return false; }
  std::string describe() const override { return "staged through the hosts' memory"; }

 private:
  Backend& backend_;
  DeviceGroups& groups_;
  std::int64_t max_values_;
  std::unique_ptr<Backend> host_;  // adds on the CPU
  HostAllReduce host_all_reduce_;
  std::shared_ptr<std::byte[]> pinned_;     // [parts, max_values]
  std::shared_ptr<std::byte[]> on_device_;  // [max_values]
  std::vector<const float*> parts_;         // in pinned_
};

}  // namespace ptrt
