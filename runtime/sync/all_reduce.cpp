#include "runtime/sync/all_reduce.h"

#include "kernels/base/error.h"
#include "runtime/sync/device_all_reduce.h"
#include "runtime/sync/host_all_reduce.h"
#include "runtime/sync/staged_all_reduce.h"

namespace ptrt {

void AllReduce::start(int, std::span<const float* const>, std::int64_t, float, const float*, float*) {
  PTRT_CHECK(overlaps());
}

void AllReduce::finish(int) {
  PTRT_CHECK(overlaps());
}

std::unique_ptr<AllReduce> make_all_reduce(TrackComm& comm, Backend& backend, StepState& state,
                                           std::int64_t parts, std::int64_t max_values,
                                           const AllReduceOptions& options) {
  if (comm.size() == 1 || backend.device_groups() == nullptr) {
    // Absent ranks can only send back what they receive.
    const auto algorithm = options.emulated ? std::optional(AllReduceAlgorithm::one_shot) : std::nullopt;
    return std::make_unique<HostAllReduce>(comm, backend, state, parts, max_values, algorithm);
  }
  if (options.device_fusion == DeviceFusion::staged)
    return std::make_unique<StagedAllReduce>(comm, backend, state, parts, max_values);
  return std::make_unique<DeviceAllReduce>(comm, backend, state, parts, max_values, options);
}

}  // namespace ptrt
