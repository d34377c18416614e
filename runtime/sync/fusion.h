// The fusion: the exchange between tracks. Adds the tracks' outputs as one fixed binary tree over 0
// … T-1, so the bits do not depend on which rank holds which track (docs/SPEC.md, Reproducibility;
// arXiv 2602.07306).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "model_io/config/model_config.h"
#include "runtime/job/placement.h"
#include "runtime/sync/all_reduce.h"

namespace ptrt {

// Where the tracks of a block leave their outputs.
struct BlockOutput {
  Tensor y;      // [local tracks, rows, d]
  Tensor minus;  // [1, rows, d]  to be subtracted from each track's output; no data: nothing
};

// What a block begins with: x = scale · tree(parts) (+ x, where add_to_x). Without parts x is
// complete, once finish() has ended a sum in flight. The kernel that begins the block may do the
// addition; whoever does calls consumed() when it is queued.
struct BlockInput {
  std::span<const float* const> parts = {};  // each [rows, d]; valid until the next exchange
  float scale = 1;
  bool add_to_x = false;
  AllReduce* exchange = nullptr;  // whose parts these are
  int in_flight = -1;             // number of a sum that finish() must end first; -1: none

  void consumed() const {
    if (exchange != nullptr) exchange->consumed();
  }
};

// For each block of a step: output(); the tracks run and write there; exchange(). Its result begins
// the next block, or finish() takes it.
class Fusion {
 public:
  // `comm`: the ranks that hold the replica's other tracks. max_rows bounds the rows of a step. All
  // buffers are allocated here. Collective.
  Fusion(TrackComm& comm, Backend& backend, StepState& state, const ModelConfig& config,
         const Placement& placement, std::int64_t max_rows, const AllReduceOptions& options = {});

  // Parts of a sum that a rank brings.
  static std::int64_t parts_of_rank(const Placement& placement);

  // Before the first block of a step. May exchange the step's header.
  void start_step();
  // For a block that reads x [1, rows, d]: where its outputs go, in the memory that the exchange
  // sends from, or else in h [local tracks, rows left, d]. A block that drops rows leaves fewer
  // than x has.
  BlockOutput output(Tensor x, Tensor h);
  // x [1, rows left, d] = fuse(x, output.y), by the ranks' all-reduce or, as the result says, by
  // the next block. Overwrites output.y. Where the block dropped rows, x has dropped them too.
  BlockInput exchange(Tensor x, const BlockOutput& output);
  // The same for half 0 or 1 of a step's rows, where overlaps(the rows of the larger): the sum travels while the other half
  // is computed, with poll() in between, and finish() ends it. x is not to be touched until then.
  bool overlaps(std::int64_t rows) const { return all_reduce_->overlaps(rows * hidden_size_); }
  BlockInput start_exchange(int half, Tensor x, const BlockOutput& output);
  void poll() { all_reduce_->poll(); }
  // Completes x [1, rows, d] with `input`, which is empty afterwards.
  void finish(BlockInput& input, Tensor x);

  AllReduce& all_reduce() { return *all_reduce_; }
  DeviceCollectives* device_group() { return all_reduce_->device_group(); }
  // Sync points are counted also when the tracks share a rank; a dense model has none.
  const SyncStats& stats() const { return all_reduce_->stats(); }
  void reset_stats() { all_reduce_->stats() = {}; }
  void settle() { all_reduce_->settle(); }
  std::string describe() const { return all_reduce_->describe(); }

 private:
  std::span<const float* const> prepare_parts(Tensor x, const BlockOutput& output);
  float scale() const;

  Backend& backend_;
  FusionOp op_;
  std::int64_t total_tracks_, local_tracks_, hidden_size_;
  bool partial_sums_;  // this rank's tracks form a subtree, so it sends their sum
  std::unique_ptr<AllReduce> all_reduce_;
  Watchdog* watchdog_;
  std::vector<const float*> local_;
};

}  // namespace ptrt
