#include "runtime/sync/device_all_reduce.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/job/fault.h"

namespace ptrt {
namespace {

std::int64_t bytes_of(std::int64_t values) {
  return values * static_cast<std::int64_t>(sizeof(float));
}

std::int64_t received_values(DeviceFusion kind, std::int64_t all_parts, std::int64_t max_values) {
  const std::int64_t all = all_parts * max_values;
  if (kind == DeviceFusion::tree) return all;
  if (kind == DeviceFusion::nccl) return max_values;
  return std::max(max_values, std::min(all, DeviceAllReduce::kTreeBytes / bytes_of(1)));
}

// The group's first rank makes its id.
std::unique_ptr<DeviceCollectives> join(TrackComm& comm, DeviceGroups& groups,
                                        const AllReduceOptions& options) {
  if (options.emulated) return groups.emulate(comm.size(), *options.emulated);
  if (const std::string missing = groups.missing(); !missing.empty()) throw_failure("{}", missing);
  const std::size_t bytes = groups.id_bytes();
  std::string mine = comm.rank() == 0 ? groups.make_id() : std::string(bytes, '\0');
  PTRT_CHECK(mine.size() == bytes);
  std::string all(bytes * static_cast<std::size_t>(comm.size()), '\0');
  comm.all_gather(mine.data(), all.data(), bytes);
  return groups.join(all.substr(0, bytes), comm.rank(), comm.size());
}

}  // namespace

DeviceAllReduce::DeviceAllReduce(TrackComm& comm, Backend& backend, StepState& state, std::int64_t parts,
                                 std::int64_t max_values, const AllReduceOptions& options)
    : comm_(comm),
      backend_(backend),
      state_(state),
      parts_per_rank_(parts),
      kind_(options.device_fusion),
      watchdog_(options.watchdog) {
  PTRT_CHECK(backend.device_groups() != nullptr && kind_ != DeviceFusion::staged);
  DeviceGroups& groups = *backend.device_groups();
  group_ = join(comm, groups, options);
  timer_ = groups.make_timer();
  const std::int64_t received = received_values(kind_, all_parts(), max_values);
  send_ = group_->allocate(static_cast<std::size_t>(parts * max_values), "what a rank sends in a sync");
  recv_ = group_->allocate(static_cast<std::size_t>(received), "what a rank receives in a sync");
  headers_.resize(static_cast<std::size_t>(comm.size()));
  all_.resize(static_cast<std::size_t>(all_parts()));
  if (watchdog_ != nullptr) watchdog_->watch(*group_);
}

DeviceAllReduce::~DeviceAllReduce() {
  if (watchdog_ != nullptr) watchdog_->forget(*group_);
}

std::int64_t DeviceAllReduce::buffer_values(DeviceFusion kind, std::int64_t ranks, std::int64_t parts,
                                            std::int64_t max_values) {
  return parts * max_values + received_values(kind, ranks * parts, max_values);
}

bool DeviceAllReduce::adds_in_tree(std::int64_t count) const {
  if (kind_ != DeviceFusion::automatic) return kind_ == DeviceFusion::tree;
  return bytes_of(all_parts() * count) <= kTreeBytes;
}

void DeviceAllReduce::start_step() {
  AllReduce::start_step();
  state_.header.sum = 0;
  comm_.all_gather(&state_.header, headers_.data(), sizeof(StepHeader));
  for (int r = 0; r < comm_.size(); r++)
    check_step_header(state_.header, comm_.rank(), headers_[static_cast<std::size_t>(r)], r);
  state_.header.flags = headers_[0].flags;
  stats_.bytes_sent += sizeof(StepHeader) * static_cast<std::size_t>(comm_.size() - 1);
  stats_.seconds += timer_->take_seconds(false);
}

float* DeviceAllReduce::send_buffer(std::int64_t count) {
  return parts_per_rank_ == 1 || adds_in_tree(count) ? send_ : nullptr;
}

std::span<const float* const> DeviceAllReduce::exchange(std::span<const float* const> local,
                                                        std::int64_t count) {
  fault_point("sync");
  PTRT_CHECK(static_cast<std::int64_t>(local.size()) == parts_per_rank_);
  sums_++;
  timer_->begin();
  if (!adds_in_tree(count)) {
    if (parts_per_rank_ > 1 || local[0] != send_) backend_.tree_sum(local, count, 1.0f, nullptr, send_);
    group_->all_reduce(send_, recv_, count);
    count_sync(2 * bytes_of(count) * (comm_.size() - 1) / comm_.size());
    all_[0] = recv_;
    return std::span(all_).first(1);
  }
  for (std::int64_t p = 0; p < parts_per_rank_; p++)
    if (float* to = send_ + p * count; local[static_cast<std::size_t>(p)] != to)
      backend_.tree_sum(local.subspan(static_cast<std::size_t>(p), 1), count, 1.0f, nullptr, to);
  group_->all_gather(send_, recv_, parts_per_rank_ * count);
  count_sync(bytes_of(parts_per_rank_ * count) * (comm_.size() - 1));
  for (std::int64_t p = 0; p < all_parts(); p++) all_[static_cast<std::size_t>(p)] = recv_ + p * count;
  return all_;
}

void DeviceAllReduce::count_sync(std::int64_t bytes_sent) {
  stats_.sync_points++;
  stats_.wait_known = false;
  stats_.bytes_sent += static_cast<std::uint64_t>(bytes_sent);
}

void DeviceAllReduce::sum(std::span<const float* const> local, std::int64_t count, float scale,
                          const float* add_to, float* out) {
  backend_.tree_sum(exchange(local, count), count, scale, add_to, out);
  consumed();
}

void DeviceAllReduce::settle() {
  stats_.seconds += timer_->take_seconds(true);
}

std::string DeviceAllReduce::describe() const {
  const char* how = kind_ == DeviceFusion::tree   ? "gather and tree sum"
                    : kind_ == DeviceFusion::nccl ? "all-reduce"
                                                  : "gather and tree sum up to 1 MiB, else all-reduce";
  return fmt::format("{}: {}", group_->describe(), how);
}

}  // namespace ptrt
