// Adding up what ranks hold, with the same bits on every rank: the one kind of communication inside a step.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kernels/backend.h"
#include "runtime/comm/track_comm.h"
#include "runtime/comm/watchdog.h"

namespace ptrt {

inline constexpr std::uint64_t kStopFlag = 1;  // end in order after this step

// Travels at the head of every message between hosts' memories, and once a step where devices meet. Ranks
// compare it, so ranks that went apart end the job; what hangs on a clock or a signal is decided by the
// replica's first rank and passed on in `flags`.
struct StepHeader {
  std::uint64_t step = 0;
  std::uint64_t digest = 0;  // of every token sampled so far
  std::uint64_t sum = 0;     // sums that this reduction did in this step
  std::uint64_t flags = 0;
  std::int64_t sent_ns = 0;  // on the sender's clock; not compared
};

// What the reductions of a rank know of the step under way. A rank takes over the flags of the first rank of
// whatever group it hears from; with tensor parallelism every rank has heard so from the replica's first rank
// by the end of the step: first along its track's group, then along the fusion's.
struct StepState {
  StepHeader header;
};

// Throws when the headers of two ranks are of different steps, sums or tokens.
void check_header(const StepHeader& mine, int rank, const StepHeader& other, int other_rank);

struct SyncStats {
  std::uint64_t sync_points = 0;
  std::uint64_t bytes_sent = 0;  // by this rank, headers included
  double seconds = 0;            // adding, waiting and moving
  double wait_seconds = 0;       // of it, until the slowest rank sent its message
  bool wait_known = true;        // devices do not tell
};

// out = scale · tree(the parts of all ranks) (+ add_to): the fixed binary tree over the parts in rank order;
// the left part takes the largest power of two below the count (docs/SPEC.md, Reproducibility).
class Reduction {
 public:
  virtual ~Reduction() = default;

  // Before the first sum of a step.
  virtual void begin_step() { sums_ = 0; }
  // `count` values of memory of the backend. `local` are this rank's parts; add_to may be out or null; out
  // may be one of the parts.
  virtual void sum(std::span<const float* const> local, std::int64_t count, float scale, const float* add_to,
                   float* out) = 0;

  // Where a rank may leave its parts [parts, count] for the next sum of `count` values, so that they need not
  // be moved within the rank; null: there is no such memory.
  virtual float* send_buffer(std::int64_t /*count*/) { return nullptr; }
  // sum() in two halves, for a caller that adds up itself: the parts of all ranks, in memory of the backend
  // that stays as it is until the next sum; empty, with nothing done, where there is only sum(). The caller
  // queues the adding and then calls end_exchange().
  virtual std::span<const float* const> begin_exchange(std::span<const float* const> /*local*/,
                                                       std::int64_t /*count*/) {
    return {};
  }
  virtual void end_exchange() {}

  // Whether sum() does nothing but queue work on the device: then a step that is recorded once and replayed
  // may hold it. A replay is told of by adding what the recorded step counted to stats().
  virtual bool recordable() const = 0;

  // At the end of a run: stats() then has the time of all sums. May wait for the device.
  virtual void settle() {}
  virtual std::string describe() const = 0;  // how the ranks meet, for people

  SyncStats& stats() { return stats_; }
  const SyncStats& stats() const { return stats_; }

 protected:
  std::uint64_t sums_ = 0;  // of this step so far
  SyncStats stats_;
};

// How ranks on devices add up.
enum class DeviceFusion : std::uint8_t {
  automatic,  // tree for what is bound by latency, nccl for more (kTreeBytes)
  tree,       // every device gets every part and adds them in the tree: the same bits for every placement
  nccl,       // the library's all-reduce: less to move, an order of additions of its own
  staged,     // through the hosts' memory and their messages; the same bits as tree
};

struct ReductionOptions {
  DeviceFusion device_fusion = DeviceFusion::automatic;
  std::optional<LinkModel> emulated = {};  // the other ranks' devices are not there
  Watchdog* watchdog = nullptr;
};

// Each rank of `comm` brings `parts` parts of at most `max_values` values. All buffers are sized here;
// collective.
std::unique_ptr<Reduction> make_reduction(TrackComm& comm, Backend& backend, StepState& state,
                                          std::int64_t parts, std::int64_t max_values,
                                          const ReductionOptions& options = {});

}  // namespace ptrt
