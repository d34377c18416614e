#include "runtime/sync/fusion.h"

#include <bit>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

// Equal groups of a power of two are subtrees of the tree over all tracks; any one rank with all tracks is
// too, and there is nothing to send.
bool sends_partial_sums(const Placement& placement) {
  return placement.fusion_ranks() > 1 && std::has_single_bit(static_cast<std::uint64_t>(placement.tracks));
}

}  // namespace

Fusion::Fusion(TrackComm& comm, Backend& backend, StepState& state, const ModelConfig& config,
               const Placement& placement, std::int64_t max_rows, const AllReduceOptions& options)
    : backend_(backend),
      op_(config.fusion.op),
      total_tracks_(config.tracks),
      local_tracks_(placement.tracks),
      partial_sums_(sends_partial_sums(placement)),
      all_reduce_(make_all_reduce(comm, backend, state, partial_sums_ ? 1 : placement.tracks,
                                  max_rows * config.hidden_size, options)),
      watchdog_(options.watchdog) {
  PTRT_CHECK(comm.size() == placement.fusion_ranks() && comm.rank() == placement.fusion_rank());
  local_.resize(static_cast<std::size_t>(local_tracks_));
}

void Fusion::start_step() {
  if (watchdog_ != nullptr) watchdog_->step_begins();
  all_reduce_->start_step();
}

SyncEntry Fusion::entry(Tensor x) {
  const std::int64_t count = x.rows * x.width;
  float* send = all_reduce_->send_buffer(count);
  if (send == nullptr) return {};
  SyncEntry entry;
  if (op_ == FusionOp::delta_sum) entry.minus = x;
  if (!partial_sums_ || local_tracks_ == 1) entry.y = {send, local_tracks_, x.rows, x.width, count};
  return entry;
}

bool Fusion::fuse(Tensor x, Tensor y, const SyncEntry& entry, const BlockBegin* next) {
  const std::int64_t count = y.rows * y.width;
  const bool delta = op_ == FusionOp::delta_sum;
  if (delta && entry.minus.data == nullptr) backend_.subtract(x.broadcast(y.tracks), y);
  for (std::int64_t t = 0; t < local_tracks_; t++) local_[static_cast<std::size_t>(t)] = y.row(t, 0);
  std::span<const float* const> parts = local_;
  if (partial_sums_ && local_tracks_ > 1) {
    float* send = all_reduce_->send_buffer(count);
    float* sum = send != nullptr ? send : y.row(0, 0);
    backend_.tree_sum(local_, count, 1.0f, nullptr, sum);
    local_[0] = sum;
  }
  if (partial_sums_) parts = parts.first(1);
  const float scale = op_ == FusionOp::mean ? 1.0f / static_cast<float>(total_tracks_) : 1.0f;
  float* out = x.row(0, 0);
  bool begun = false;
  if (next != nullptr)
    if (const auto all = all_reduce_->begin_exchange(parts, count); !all.empty()) {
      BlockBegin begin = *next;
      begin.parts = all;
      begin.scale = scale;
      begin.add_to_x = delta;
      backend_.begin_block(begin);
      all_reduce_->end_exchange();
      begun = true;
    }
  if (!begun) all_reduce_->sum(parts, count, scale, delta ? out : nullptr, out);
  if (total_tracks_ == 1) all_reduce_->stats().sync_points = 0;
  return begun;
}

}  // namespace ptrt
