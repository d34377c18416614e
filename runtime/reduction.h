// Adding up what ranks hold, with the same bits on every rank: the one kind of communication inside a step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "runtime/clock_offsets.h"
#include "runtime/track_comm.h"

namespace ptrt {

inline constexpr std::uint64_t kStopFlag = 1;  // end in order after this step

// Travels at the head of every message. Ranks compare it, so ranks that went apart end the job; what hangs on
// a clock or a signal is decided by the replica's first rank and passed on in `flags`.
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

struct SyncStats {
  std::uint64_t sync_points = 0;
  std::uint64_t bytes_sent = 0;  // by this rank, headers included
  double seconds = 0;            // adding, waiting and moving
  double wait_seconds = 0;       // of it, until the slowest rank sent its message
};

// The fixed binary tree over the parts of all ranks in rank order: the left part takes the largest power of
// two below the count (contract, section 3). Small messages go to every rank at once, one hop; of large ones
// each rank adds a slice, and the sums are gathered.
class Reduction {
 public:
  // Each rank brings `parts` parts of at most `max_values` values. All buffers are sized here; collective.
  Reduction(TrackComm& comm, Backend& backend, StepState& state, std::int64_t parts, std::int64_t max_values);

  // Before the first sum of a step.
  void begin_step() { sums_ = 0; }
  // out = scale · tree(all ranks' parts) (+ add_to, which may be out or null), `count` values. `local` are
  // this rank's parts; out may be one of them.
  void sum(std::span<const float* const> local, std::int64_t count, float scale, const float* add_to,
           float* out);

  int ranks() const { return comm_.size(); }
  SyncStats& stats() { return stats_; }
  const SyncStats& stats() const { return stats_; }

 private:
  struct Job {
    std::span<const float* const> local;
    std::int64_t count;
    float scale;
    const float* add_to;
    float* out;
  };
  void exchange_whole(const Job& job);
  void exchange_slices(const Job& job);
  void take_headers(std::size_t message_bytes);
  std::byte* message(std::vector<std::byte>& buffer, std::int64_t index, std::size_t message_bytes) const;

  TrackComm& comm_;
  Backend& backend_;
  StepState& state_;
  std::int64_t parts_per_rank_;
  ClockOffsets offsets_;
  std::uint64_t sums_ = 0;
  StepHeader header_;              // of the messages under way
  std::int64_t last_sent_ns_ = 0;  // when the slowest rank sent, on this rank's clock
  SyncStats stats_;
  std::vector<std::byte> send_, recv_;
  std::vector<const float*> all_;  // parts of all ranks
};

}  // namespace ptrt
