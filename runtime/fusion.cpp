#include "runtime/fusion.h"

#include <bit>
#include <chrono>
#include <cstring>

#include "kernels/error.h"
#include "runtime/fault.h"

namespace ptrt {
namespace {

// From this many bytes a rank, adding slices and gathering the sums moves less than sending everything to
// everyone.
constexpr std::size_t kSliceBytes = 128 * 1024;

static_assert(sizeof(StepHeader) % alignof(float) == 0);

std::int64_t slice_width(std::int64_t count, int ranks) {
  return (count + ranks - 1) / ranks;
}

}  // namespace

Fusion::Fusion(TrackComm& comm, Backend& backend, const ModelConfig& config, const Placement& placement,
               std::int64_t max_rows)
    : comm_(comm),
      backend_(backend),
      op_(config.fusion.op),
      total_tracks_(config.tracks),
      local_tracks_(placement.tracks),
      // Equal groups of a power of two are subtrees of the tree over all tracks; any one rank with all tracks
      // is too.
      partial_sums_(placement.replica_ranks == 1 ||
                    std::has_single_bit(static_cast<std::uint64_t>(placement.tracks))),
      parts_per_rank_(partial_sums_ ? 1 : placement.tracks) {
  PTRT_CHECK(comm.size() == placement.replica_ranks && comm.rank() == placement.replica_rank);
  local_.resize(static_cast<std::size_t>(local_tracks_));
  parts_.resize(static_cast<std::size_t>(parts_per_rank_ * comm.size()));
  if (comm.size() == 1) return;
  const auto ranks = static_cast<std::size_t>(comm.size());
  const auto values = static_cast<std::size_t>(parts_per_rank_ * max_rows * config.hidden_size);
  const std::size_t whole = sizeof(StepHeader) + values * sizeof(float);
  // Slices round up to whole elements a rank and part.
  const std::size_t sliced =
      values * sizeof(float) + ranks * (sizeof(StepHeader) + sizeof(float) * parts_.size());
  send_.resize(std::max(whole, sliced));
  recv_.resize(ranks * std::max(whole, sliced));
}

void Fusion::begin_step(const StepHeader& header) {
  header_ = header;
  if (comm_.rank() == 0) leader_flags_ = header.flags;
}

void Fusion::fuse(Tensor x, Tensor y) {
  fault_point("sync");
  const auto start = std::chrono::steady_clock::now();
  const std::int64_t count = y.rows * y.width;
  if (op_ == FusionOp::delta_sum) backend_.subtract(x.broadcast(y.tracks), y);
  for (std::int64_t t = 0; t < local_tracks_; t++) local_[static_cast<std::size_t>(t)] = y.row(t, 0);
  if (comm_.size() == 1) {
    finish(local_, count, x.row(0, 0), x.row(0, 0));
  } else {
    if (partial_sums_ && local_tracks_ > 1) backend_.tree_sum(local_, count, 1.0f, nullptr, y.row(0, 0));
    header_.fusion++;
    const std::size_t bytes = static_cast<std::size_t>(parts_per_rank_ * count) * sizeof(float);
    if (comm_.size() > 2 && bytes >= kSliceBytes)
      exchange_slices(count, x.row(0, 0));
    else
      exchange_whole(count, x.row(0, 0));
  }
  if (total_tracks_ > 1) stats_.sync_points++;
  stats_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Every rank gets every part and adds them all: one hop.
void Fusion::exchange_whole(std::int64_t count, float* x) {
  const auto part_bytes = static_cast<std::size_t>(count) * sizeof(float);
  const std::size_t bytes = sizeof(StepHeader) + static_cast<std::size_t>(parts_per_rank_) * part_bytes;
  std::memcpy(send_.data(), &header_, sizeof header_);
  for (std::int64_t p = 0; p < parts_per_rank_; p++)
    std::memcpy(send_.data() + sizeof header_ + static_cast<std::size_t>(p) * part_bytes,
                local_[static_cast<std::size_t>(p)], part_bytes);
  comm_.all_gather(send_.data(), recv_.data(), bytes);
  stats_.bytes_sent += bytes * static_cast<std::size_t>(comm_.size() - 1);
  check_headers(bytes);
  for (std::int64_t r = 0; r < comm_.size(); r++)
    for (std::int64_t p = 0; p < parts_per_rank_; p++)
      parts_[static_cast<std::size_t>(r * parts_per_rank_ + p)] =
          reinterpret_cast<const float*>(message(recv_, r, bytes) + sizeof(StepHeader)) + p * count;
  finish(parts_, count, x, x);
}

// Every rank adds one slice of all parts, then the sums are gathered.
void Fusion::exchange_slices(std::int64_t count, float* x) {
  const int ranks = comm_.size();
  const std::int64_t width = slice_width(count, ranks);
  const auto slice_bytes = static_cast<std::size_t>(width) * sizeof(float);
  const std::size_t bytes = sizeof(StepHeader) + static_cast<std::size_t>(parts_per_rank_) * slice_bytes;
  const auto slice_count = [&](std::int64_t rank) {
    return std::clamp<std::int64_t>(count - rank * width, 0, width);
  };
  for (std::int64_t r = 0; r < ranks; r++) {
    std::byte* to = message(send_, r, bytes);
    std::memcpy(to, &header_, sizeof header_);
    for (std::int64_t p = 0; p < parts_per_rank_; p++)
      if (slice_count(r) > 0)
        std::memcpy(to + sizeof header_ + static_cast<std::size_t>(p) * slice_bytes,
                    local_[static_cast<std::size_t>(p)] + r * width,
                    static_cast<std::size_t>(slice_count(r)) * sizeof(float));
  }
  comm_.all_to_all(send_.data(), recv_.data(), bytes);
  check_headers(bytes);
  for (std::int64_t r = 0; r < ranks; r++)
    for (std::int64_t p = 0; p < parts_per_rank_; p++)
      parts_[static_cast<std::size_t>(r * parts_per_rank_ + p)] =
          reinterpret_cast<const float*>(message(recv_, r, bytes) + sizeof(StepHeader)) + p * width;

  const std::int64_t mine = slice_count(comm_.rank());
  auto* sum = reinterpret_cast<float*>(send_.data());
  if (mine > 0) finish(parts_, mine, x + comm_.rank() * width, sum);
  comm_.all_gather(sum, recv_.data(), slice_bytes);
  for (std::int64_t r = 0; r < ranks; r++)
    if (slice_count(r) > 0)
      std::memcpy(x + r * width, message(recv_, r, slice_bytes),
                  static_cast<std::size_t>(slice_count(r)) * sizeof(float));
  stats_.bytes_sent += (bytes + slice_bytes) * static_cast<std::size_t>(ranks - 1);
}

// out = fuse(x, parts), element by element; out may be x.
void Fusion::finish(std::span<const float* const> parts, std::int64_t count, float* x, float* out) {
  const float scale = op_ == FusionOp::mean ? 1.0f / static_cast<float>(total_tracks_) : 1.0f;
  backend_.tree_sum(parts, count, scale, op_ == FusionOp::delta_sum ? x : nullptr, out);
}

std::byte* Fusion::message(std::vector<std::byte>& buffer, std::int64_t index, std::size_t message_bytes) {
  return buffer.data() + static_cast<std::size_t>(index) * message_bytes;
}

void Fusion::check_headers(std::size_t message_bytes) {
  for (int r = 0; r < comm_.size(); r++) {
    StepHeader other;
    std::memcpy(&other, message(recv_, r, message_bytes), sizeof other);
    if (r == 0) leader_flags_ = other.flags;
    if (other.step != header_.step || other.digest != header_.digest || other.fusion != header_.fusion)
      throw_failure(
          "ranks {} and {} of the replica went apart: step {} fusion {} digest {:016x} here, step {} fusion "
          "{} digest "
          "{:016x} there",
          comm_.rank(), r, header_.step, header_.fusion, header_.digest, other.step, other.fusion,
          other.digest);
  }
}

}  // namespace ptrt
