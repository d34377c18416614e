#include "runtime/sync/fusion.h"

#include <bit>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

// Equal groups of a power of two are subtrees of the tree over all tracks; any one rank with all
// tracks is too, and there is nothing to send.
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
      hidden_size_(config.hidden_size),
      partial_sums_(sends_partial_sums(placement)),
      all_reduce_(make_all_reduce(comm, backend, state, parts_of_rank(placement),
                                  max_rows * config.hidden_size, options)),
      watchdog_(options.watchdog) {
  PTRT_CHECK(comm.size() == placement.fusion_ranks() && comm.rank() == placement.fusion_rank());
  local_.resize(static_cast<std::size_t>(local_tracks_));
}

std::int64_t Fusion::parts_of_rank(const Placement& placement) {
  return sends_partial_sums(placement) ? 1 : placement.tracks;
}

void Fusion::start_step() {
  if (watchdog_ != nullptr) watchdog_->step_begins();
  all_reduce_->start_step();
}

BlockOutput Fusion::output(Tensor x, Tensor h) {
  BlockOutput output{.y = h, .minus = {}};
  const std::int64_t count = h.rows * h.width;
  const bool sends_tracks = !partial_sums_ || local_tracks_ == 1;
  if (float* send = sends_tracks ? all_reduce_->send_buffer(count) : nullptr; send != nullptr)
    output.y = {send, local_tracks_, h.rows, h.width, count};
  // x loses its rows only once every lane has begun the block, so exchange() subtracts it then.
  if (op_ == FusionOp::delta_sum && h.rows == x.rows) output.minus = x;
  return output;
}

// This rank's parts of the sum over tracks.
std::span<const float* const> Fusion::prepare_parts(Tensor x, const BlockOutput& output) {
  const Tensor y = output.y;
  const std::int64_t count = y.rows * y.width;
  PTRT_CHECK(x.rows == y.rows && y.tracks == local_tracks_);
  if (op_ == FusionOp::delta_sum && output.minus.data == nullptr) backend_.subtract(x.broadcast(y.tracks), y);
  for (std::int64_t t = 0; t < local_tracks_; t++) local_[static_cast<std::size_t>(t)] = y.row(t, 0);
  if (!partial_sums_) return local_;
  if (local_tracks_ > 1) {
    float* send = all_reduce_->send_buffer(count);
    float* sum = send != nullptr ? send : y.row(0, 0);
    backend_.tree_sum(local_, count, 1.0f, nullptr, sum);
    local_[0] = sum;
  }
  return std::span(local_).first(1);
}

float Fusion::scale() const {
  return op_ == FusionOp::mean ? 1.0f / static_cast<float>(total_tracks_) : 1.0f;
}

BlockInput Fusion::exchange(Tensor x, const BlockOutput& output) {
  const std::span<const float* const> parts = prepare_parts(x, output);
  const std::int64_t count = x.rows * x.width;
  const bool delta = op_ == FusionOp::delta_sum;
  if (const auto all = all_reduce_->exchange(parts, count); !all.empty())
    return {.parts = all, .scale = scale(), .add_to_x = delta, .exchange = &*all_reduce_};
  float* out = x.row(0, 0);
  all_reduce_->sum(parts, count, scale(), delta ? out : nullptr, out);
  if (total_tracks_ == 1) all_reduce_->stats().sync_points = 0;
  return {};
}

BlockInput Fusion::start_exchange(int half, Tensor x, const BlockOutput& output) {
  const std::span<const float* const> parts = prepare_parts(x, output);
  float* out = x.row(0, 0);
  all_reduce_->start(half, parts, x.rows * x.width, scale(), op_ == FusionOp::delta_sum ? out : nullptr, out);
  return {.in_flight = half};
}

void Fusion::finish(BlockInput& input, Tensor x) {
  if (input.in_flight >= 0) all_reduce_->finish(input.in_flight);
  float* out = x.row(0, 0);
  if (!input.parts.empty())
    backend_.tree_sum(input.parts, x.rows * x.width, input.scale, input.add_to_x ? out : nullptr, out);
  input.consumed();
  input = {};
}

}  // namespace ptrt
