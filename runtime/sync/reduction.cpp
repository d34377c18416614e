#include "runtime/sync/reduction.h"

#include "kernels/base/error.h"
#include "runtime/sync/device_reduction.h"
#include "runtime/sync/host_reduction.h"
#include "runtime/sync/staged_reduction.h"

namespace ptrt {

void check_header(const StepHeader& mine, int rank, const StepHeader& other, int other_rank) {
  if (other.step == mine.step && other.digest == mine.digest && other.sum == mine.sum) return;
  throw_failure(
      "ranks {} and {} of the replica went apart: step {} sum {} digest {:016x} here, step {} sum {} digest "
      "{:016x} there",
      rank, other_rank, mine.step, mine.sum, mine.digest, other.step, other.sum, other.digest);
}

std::unique_ptr<Reduction> make_reduction(TrackComm& comm, Backend& backend, StepState& state,
                                          std::int64_t parts, std::int64_t max_values,
                                          const ReductionOptions& options) {
  if (comm.size() == 1 || backend.device_groups() == nullptr) {
    // Absent ranks can do no more than send what they are sent.
    const auto way = options.emulated ? std::optional(SumWay::one_hop) : std::nullopt;
    return std::make_unique<HostReduction>(comm, backend, state, parts, max_values, way);
  }
  if (options.device_fusion == DeviceFusion::staged)
    return std::make_unique<StagedReduction>(comm, backend, state, parts, max_values);
  return std::make_unique<DeviceReduction>(comm, backend, state, parts, max_values, options);
}

}  // namespace ptrt
