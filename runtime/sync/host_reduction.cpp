#include "runtime/sync/host_reduction.h"

#include <algorithm>

#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "runtime/comm/fault.h"

namespace ptrt {
namespace {

constexpr std::size_t kSharedWholeBytes = 32 * 1024;  // up to here every rank adds everything
// Between hosts a message costs processor time at both ends, whatever its size: up to so many bytes the
// fewest messages are best, then the fewest bytes a rank.
constexpr std::size_t kAtFirstBytes = 384 * 1024;

double seconds(std::int64_t ns) {
  return 1e-9 * static_cast<double>(ns);
}

}  // namespace

std::string_view to_string(SumWay way) {
  switch (way) {
    case SumWay::shared_whole:
      return "shared whole";
    case SumWay::shared_slices:
      return "shared slices";
    case SumWay::one_hop:
      return "one hop";
    case SumWay::at_first:
      return "at first";
    case SumWay::slices:
      return "slices";
  }
  return "?";
}

bool needs_shared_memory(SumWay way) {
  return way == SumWay::shared_whole || way == SumWay::shared_slices;
}

SumWay best_way(int ranks, std::size_t bytes, bool shares_memory) {
  if (shares_memory) return bytes <= kSharedWholeBytes ? SumWay::shared_whole : SumWay::shared_slices;
  if (ranks == 2) return SumWay::one_hop;
  return bytes <= kAtFirstBytes ? SumWay::at_first : SumWay::slices;
}

HostReduction::HostReduction(TrackComm& comm, Backend& backend, StepState& state, std::int64_t parts,
                             std::int64_t max_values, std::optional<SumWay> way)
    : comm_(comm), backend_(backend), parts_(parts), way_(way), headers_(comm, state) {
  if (comm.size() == 1) return;
  shared_ = SharedSum::make(comm, backend, headers_, parts, max_values);
  if (shared_ == nullptr || way) messages_.emplace(comm, backend, headers_, parts, max_values);
}

void HostReduction::sum(std::span<const float* const> local, std::int64_t count, float scale,
                        const float* add_to, float* out) {
  fault_point("sync");
  const std::int64_t start = now_ns();
  if (comm_.size() == 1) {
    backend_.tree_sum(local, count, scale, add_to, out);
    stats_.seconds += seconds(now_ns() - start);
  } else {
    PTRT_CHECK(static_cast<std::int64_t>(local.size()) == parts_);
    headers_.begin(++sums_, start);
    const auto bytes = static_cast<std::size_t>(parts_ * count) * sizeof(float);
    const SumWay way = way_.value_or(best_way(comm_.size(), bytes, shares_memory()));
    stats_.bytes_sent += exchange(way, {local, count, scale, add_to, out});
    const std::int64_t end = now_ns();
    stats_.seconds += seconds(end - start);
    stats_.wait_seconds +=
        seconds(std::clamp<std::int64_t>(headers_.last_ready_ns() - start, 0, end - start));
  }
  stats_.sync_points++;
}

std::uint64_t HostReduction::exchange(SumWay way, const SumJob& job) {
  PTRT_CHECK(needs_shared_memory(way) ? shared_ != nullptr : messages_.has_value());
  switch (way) {
    case SumWay::shared_whole:
      return shared_->whole(job);
    case SumWay::shared_slices:
      return shared_->slices(job);
    case SumWay::one_hop:
      return messages_->one_hop(job);
    case SumWay::at_first:
      return messages_->at_first(job);
    case SumWay::slices:
      return messages_->slices(job);
  }
  throw_failure("no such way to sum: {}", static_cast<int>(way));
}

}  // namespace ptrt
