// The fusion: where tracks meet. Adds the tracks' outputs as one fixed binary tree over 0 … T-1, so the bits
// do not depend on which rank holds which track (docs/SPEC.md, Reproducibility; arXiv 2602.07306).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "model_io/config/model_config.h"
#include "runtime/comm/placement.h"
#include "runtime/comm/track_comm.h"
#include "runtime/sync/all_reduce.h"

namespace ptrt {

// What the fusion would have from the track blocks before it. In place where both have no data.
struct SyncEntry {
  Tensor y;      // [local tracks, rows, d] where they leave their outputs, in the place of h
  Tensor minus;  // [1, rows, d]            subtracted from them
};

class Fusion {
 public:
  // `comm`: the ranks that hold the replica's other tracks. max_rows bounds the rows of a step; all buffers
  // are sized here.
  Fusion(TrackComm& comm, Backend& backend, StepState& state, const ModelConfig& config,
         const Placement& placement, std::int64_t max_rows, const AllReduceOptions& options = {});

  void start_step();
  // For the fuse() to come of x [1, rows, d].
  SyncEntry entry(Tensor x);
  // x [1, rows, d] = fuse(x, y) with y [local tracks, rows, d], which is overwritten; y is as `entry`, if
  // any, said. `next`, without its sum: begins the block that follows in one pass with the sum, where that
  // can be; true when it did.
  bool fuse(Tensor x, Tensor y, const SyncEntry& entry = {}, const BlockBegin* next = nullptr);

  AllReduce& all_reduce() { return *all_reduce_; }
  // Sync points are counted also when the tracks share a rank; a dense model has none.
  const SyncStats& stats() const { return all_reduce_->stats(); }
  void reset_stats() { all_reduce_->stats() = {}; }
  void settle() { all_reduce_->settle(); }
  std::string describe() const { return all_reduce_->describe(); }

 private:
  Backend& backend_;
  FusionOp op_;
  std::int64_t total_tracks_, local_tracks_;
  bool partial_sums_;  // this rank's tracks form a subtree, so it sends their sum
  std::unique_ptr<AllReduce> all_reduce_;
  Watchdog* watchdog_;
  std::vector<const float*> local_;
};

}  // namespace ptrt
