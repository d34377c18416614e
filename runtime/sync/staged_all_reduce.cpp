#include "runtime/sync/staged_all_reduce.h"

#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "kernels/make_cpu_backend.h"

namespace ptrt {
namespace {

DeviceGroups& groups_of(Backend& backend) {
  PTRT_CHECK(backend.device_groups() != nullptr);
  return *backend.device_groups();
}

}  // namespace

StagedAllReduce::StagedAllReduce(TrackComm& comm, Backend& backend, StepState& state, std::int64_t parts,
                                 std::int64_t max_values)
    : backend_(backend),
      groups_(groups_of(backend)),
      max_values_(max_values),
      host_(make_cpu_backend({.threads = 1})),
      host_all_reduce_(comm, *host_, state, parts, max_values) {
  const std::size_t bytes = static_cast<std::size_t>(max_values) * sizeof(float);
  pinned_ = groups_.allocate_host(static_cast<std::size_t>(parts) * bytes, "sums through the host");
  on_device_ = backend.allocate(bytes, "sums through the host");
  for (std::int64_t p = 0; p < parts; p++)
    parts_.push_back(reinterpret_cast<const float*>(pinned_.get()) + p * max_values);
}

void StagedAllReduce::sum(std::span<const float* const> local, std::int64_t count, float scale,
                          const float* add_to, float* out) {
  PTRT_CHECK(local.size() == parts_.size() && count <= max_values_);
  groups_.wait();  // the time of earlier work is not the sync's
  const std::int64_t start = now_ns();
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
  auto* const pinned = reinterpret_cast<float*>(pinned_.get());
  const auto bytes_at = [&](float* values) { return std::span(reinterpret_cast<std::byte*>(values), bytes); };
  for (std::size_t p = 0; p < local.size(); p++)
    backend_.read_back(reinterpret_cast<const std::byte*>(local[p]),
                       bytes_at(pinned + static_cast<std::int64_t>(p) * max_values_));
  const SyncStats before = host_all_reduce_.stats();
  host_all_reduce_.sum(parts_, count, scale, nullptr, pinned);
  backend_.write(bytes_at(pinned), on_device_.get());
  const float* total[] = {reinterpret_cast<const float*>(on_device_.get())};
  backend_.tree_sum(total, count, 1.0f, add_to, out);

  const SyncStats& after = host_all_reduce_.stats();
  stats_.sync_points++;
  stats_.bytes_sent += after.bytes_sent - before.bytes_sent;
  stats_.wait_seconds += after.wait_seconds - before.wait_seconds;
  stats_.seconds += 1e-9 * static_cast<double>(now_ns() - start);
}

}  // namespace ptrt
