// All-reduce over the ranks of a group, with the same bits on every rank: the only kind of
// communication inside a forward pass.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kernels/backend.h"
#include "runtime/comm/track_comm.h"
#include "runtime/comm/watchdog.h"
#include "runtime/sync/step_header.h"

namespace ptrt {

class Tracer;

struct SyncStats {
  std::uint64_t sync_points = 0;
  std::uint64_t bytes_sent = 0;  // by this rank, headers included
  double seconds = 0;            // adding, waiting and moving
  double wait_seconds = 0;       // of these, until the slowest rank had sent its message
  bool wait_known = true;        // devices do not measure it
};

// out = scale · tree(the parts of all ranks) (+ add_to): the fixed binary tree over the parts in
// rank order, whose left part takes the largest power of two below the count (docs/SPEC.md,
// Reproducibility). A collective: all ranks of the group make the same calls in the same order.
class AllReduce {
 public:
  virtual ~AllReduce() = default;

  // Before the first sum of a step.
  virtual void start_step() { sums_ = 0; }
  // Sums `count` values in the backend's memory. `local`: this rank's parts, each [count]. add_to
  // may be out or null; out may be one of the parts.
  virtual void sum(std::span<const float* const> local, std::int64_t count, float scale, const float* add_to,
                   float* out) = 0;

  // Where a rank may leave its parts [parts, count] for the next sum of `count` values, which
  // spares a copy within the rank; null where there is no such memory.
  virtual float* send_buffer(std::int64_t /*count*/) { return nullptr; }
  // sum() without the addition, which the caller does: the parts of all ranks, or one part with
  // their sum, in the backend's memory, unchanged until the next sum. Empty, and nothing done,
  // where only sum() is offered. The caller queues the addition and then calls consumed().
  virtual std::span<const float* const> exchange(std::span<const float* const> /*local*/,
                                                 std::int64_t /*count*/) {
    return {};
  }
  // Ends the time of the last exchange().
  virtual void consumed() {}

  // Where overlaps(count), sums of up to so many values may be in flight while the caller computes:
  // kInFlight of them, by number, of at most max_values values together, beside no other sum. start() copies the parts; add_to and
  // out belong to the sum until finish(), which waits for it. poll(), between pieces of work, moves
  // what can be moved. Number 0 counts as a sync point: the others are parts of the same.
  static constexpr int kInFlight = 2;
  virtual bool overlaps(std::int64_t /*count*/) const { return false; }
  virtual void start(int number, std::span<const float* const> local, std::int64_t count, float scale,
                     const float* add_to, float* out);
  virtual void poll() {}
  virtual void finish(int number);

  // Whether sum() only queues work on the device, so that a step which is recorded once and
  // replayed may contain it. The caller of a replay adds to stats() what the recorded step counted.
  virtual bool recordable() const = 0;

  // The ranks' devices as a group, for other exchanges on the same stream; null where the sums go through the hosts.
  virtual DeviceCollectives* device_group() { return nullptr; }

  // At the end of a run: makes stats() include the time of all sums. May wait for the device.
  virtual void settle() {}
  virtual std::string describe() const = 0;  // how the ranks communicate, for people

  SyncStats& stats() { return stats_; }
  const SyncStats& stats() const { return stats_; }

 protected:
  std::uint64_t sums_ = 0;  // of this step so far
  SyncStats stats_;
};

// How ranks on devices add up.
enum class DeviceFusion : std::uint8_t {
  automatic,  // tree where latency dominates, nccl for larger sums (DeviceAllReduce::kTreeBytes)
  tree,       // all-gather, then every device adds in the tree: the same bits for every placement
  nccl,       // the library's all-reduce: fewer bytes to move, an order of additions of its own
  staged,     // through the hosts' memory and their messages; the same bits as tree
};

struct AllReduceOptions {
  DeviceFusion device_fusion = DeviceFusion::automatic;
  std::optional<LinkModel> emulated = {};  // the other ranks' devices are absent; this link models them
  Watchdog* watchdog = nullptr;
  Tracer* tracer = nullptr;  // records the sums; null: nothing is traced
};

// What make_all_reduce() allocates on each device for `ranks` with a device each.
std::int64_t device_sum_bytes(DeviceFusion kind, std::int64_t ranks, std::int64_t parts,
                              std::int64_t max_values);

// Each rank of `comm` contributes `parts` parts of at most `max_values` values. All buffers are
// allocated here. Collective.
std::unique_ptr<AllReduce> make_all_reduce(TrackComm& comm, Backend& backend, StepState& state,
                                           std::int64_t parts, std::int64_t max_values,
                                           const AllReduceOptions& options = {});

}  // namespace ptrt
