#include "runtime/sync/shm_all_reduce.h"

#include <algorithm>
#include <cstring>

namespace ptrt {
namespace {

std::size_t value_bytes(std::int64_t values) {
  return static_cast<std::size_t>(values) * sizeof(float);
}

}  // namespace

ShmAllReduce::ShmAllReduce(TrackComm& comm, Backend& backend, StepConsistency& consistency,
                           std::int64_t parts, std::unique_ptr<ShmBoard> board)
    : comm_(comm),
      backend_(backend),
      consistency_(consistency),
      parts_(parts),
      board_(std::move(board)),
      piece_values_(board_->values()),
      local_(static_cast<std::size_t>(parts)),
      all_(static_cast<std::size_t>(parts * comm.size())) {}

// Leaves out values [skip_begin, skip_end), which no other rank reads.
void ShmAllReduce::publish_parts(const AllReduceJob& piece, std::int64_t skip_begin, std::int64_t skip_end) {
  number_++;
  float* to = values_of(comm_.rank());
  for (std::size_t p = 0; p < piece.local.size(); p++, to += piece_values_) {
    std::memcpy(to, piece.local[p], value_bytes(skip_begin));
    std::memcpy(to + skip_end, piece.local[p] + skip_end, value_bytes(piece.count - skip_end));
  }
  ShmBoard::PartsReady& ready = half_of(comm_.rank()).parts;
  ready.header = consistency_.outgoing();
  ready.number.store(number_, std::memory_order_release);
}

void ShmAllReduce::await_parts(const AllReduceJob& piece) {
  const int ranks = comm_.size(), me = comm_.rank();
  for (int r = 0; r < ranks; r++) {
    const float** parts = all_.data() + r * parts_;
    if (r == me) {
      std::ranges::copy(piece.local, parts);
      continue;
    }
    const ShmBoard::PartsReady& ready = half_of(r).parts;
    board_->wait_for(r, ready.number, number_);
    consistency_.receive(r, ready.header, r == 0);
    for (std::int64_t p = 0; p < parts_; p++) parts[p] = values_of(r) + p * piece_values_;
  }
}

std::uint64_t ShmAllReduce::one_shot(const AllReduceJob& job) {
  if (job.count > piece_values_) return two_shot(job);
  publish_parts(job, 0, 0);
  await_parts(job);
  backend_.tree_sum(all_, job.count, job.scale, job.add_to, job.out);
  return sizeof(StepHeader) + value_bytes(parts_ * job.count);
}

std::uint64_t ShmAllReduce::two_shot(const AllReduceJob& job) {
  std::uint64_t bytes = 0;
  for (std::int64_t first = 0; first < job.count; first += piece_values_) {
    for (std::size_t p = 0; p < job.local.size(); p++) local_[p] = job.local[p] + first;
    bytes += two_shot_piece({local_, std::min(piece_values_, job.count - first), job.scale,
                             job.add_to != nullptr ? job.add_to + first : nullptr, job.out + first});
  }
  return bytes;
}

// Rank r adds slice r, into its own memory where its own part of that slice would be: nobody reads
// that.
std::uint64_t ShmAllReduce::two_shot_piece(const AllReduceJob& piece) {
  const int ranks = comm_.size(), me = comm_.rank();
  const std::int64_t width = slice_width(piece.count, ranks);
  const auto begin_of = [&](std::int64_t rank) { return std::min(rank * width, piece.count); };
  const std::int64_t begin = begin_of(me), end = begin_of(me + 1);
  publish_parts(piece, begin, end);
  await_parts(piece);
  float* sum = values_of(me) + begin;
  if (end > begin) {
    for (const float*& part : all_) part += begin;
    backend_.tree_sum(all_, end - begin, piece.scale,
                      piece.add_to != nullptr ? piece.add_to + begin : nullptr, sum);
  }
  half_of(me).sum.number.store(number_, std::memory_order_release);
  std::memcpy(piece.out + begin, sum, value_bytes(end - begin));
  for (int distance = 1; distance < ranks; distance++) {
    const int r = (me + distance) % ranks;
    board_->wait_for(r, half_of(r).sum.number, number_);
    std::memcpy(piece.out + begin_of(r), values_of(r) + begin_of(r),
                value_bytes(begin_of(r + 1) - begin_of(r)));
  }
  return sizeof(StepHeader) + value_bytes(parts_ * (piece.count - (end - begin)) + (end - begin));
}

}  // namespace ptrt
