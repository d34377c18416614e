// The fusion: where tracks meet. Adds the tracks' outputs as one fixed binary tree over 0 … T-1, so the bits
// do not depend on which rank holds which track (contract, sections 1 and 3; arXiv 2602.07306).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "model_io/model_config.h"
#include "runtime/placement.h"
#include "runtime/track_comm.h"

namespace ptrt {

// Travels at the head of every message of a fusion. Ranks compare it, so ranks that went apart end the job;
// the replica's first rank decides in `flags` what hangs on a clock or a signal.
struct StepHeader {
  std::uint64_t step = 0;
  std::uint64_t digest = 0;  // of every token sampled so far
  std::uint64_t fusion = 0;  // fusions done so far
  std::uint64_t flags = 0;
};
inline constexpr std::uint64_t kStopFlag = 1;  // end in order after this step

struct SyncStats {
  std::uint64_t sync_points = 0;  // fusions between tracks, counted also when the tracks share a rank
  std::uint64_t bytes_sent = 0;   // by this rank, headers included
  double seconds = 0;             // in fusions: local sums, waiting and moving
};

class Fusion {
 public:
  // max_rows bounds the rows of a step; all buffers are sized here.
  Fusion(TrackComm& comm, Backend& backend, const ModelConfig& config, const Placement& placement,
         std::int64_t max_rows);

  // What this rank puts at the head of its messages until the next call.
  void begin_step(const StepHeader& header);
  // Flags of the replica's first rank, as of the last fusion (its own header's where nothing is sent).
  std::uint64_t leader_flags() const { return leader_flags_; }

  // x [1, rows, d] = fuse(x, y) with y [local tracks, rows, d], which is overwritten.
  void fuse(Tensor x, Tensor y);

  const SyncStats& stats() const { return stats_; }
  void reset_stats() { stats_ = {}; }

 private:
  void exchange_whole(std::int64_t count, float* x);
  void exchange_slices(std::int64_t count, float* x);
  void check_headers(std::size_t message_bytes);
  void finish(std::span<const float* const> parts, std::int64_t count, float* x, float* out);
  std::byte* message(std::vector<std::byte>& buffer, std::int64_t index, std::size_t message_bytes);

  TrackComm& comm_;
  Backend& backend_;
  FusionOp op_;
  std::int64_t total_tracks_, local_tracks_;
  bool partial_sums_;            // this rank's tracks form a subtree, so it sends their sum
  std::int64_t parts_per_rank_;  // 1 with partial sums, else the local tracks
  StepHeader header_;
  std::uint64_t leader_flags_ = 0;
  SyncStats stats_;
  std::vector<std::byte> send_, recv_;
  std::vector<const float*> local_, parts_;
};

}  // namespace ptrt
