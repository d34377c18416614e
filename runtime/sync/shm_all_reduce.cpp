#include "runtime/sync/shm_all_reduce.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;

// Larger sums are done in pieces: memory is bounded, and a piece is still in a cache when the
// others read it.
constexpr std::int64_t kPieceValues = 256 * 1024;
constexpr Clock::duration kSpin = std::chrono::microseconds(100);  // then a waiting rank yields
constexpr Clock::duration kListen = std::chrono::milliseconds(2);  // between checks that the job continues

std::size_t value_bytes(std::int64_t values) {
  return static_cast<std::size_t>(values) * sizeof(float);
}

}  // namespace

std::unique_ptr<ShmAllReduce> ShmAllReduce::make(TrackComm& comm, Backend& backend,
                                                 StepConsistency& consistency, std::int64_t parts,
                                                 std::int64_t max_values) {
  const std::int64_t piece = (std::min(max_values, kPieceValues / parts + 1) + 15) / 16 * 16;
  auto memory = comm.share(2 * (sizeof(Half) + value_bytes(parts * piece)));
  if (memory == nullptr) return nullptr;
  return std::make_unique<ShmAllReduce>(comm, backend, consistency, parts, piece, std::move(memory));
}

ShmAllReduce::ShmAllReduce(TrackComm& comm, Backend& backend, StepConsistency& consistency,
                           std::int64_t parts, std::int64_t piece_values,
                           std::unique_ptr<SharedMemory> memory)
    : comm_(comm),
      backend_(backend),
      consistency_(consistency),
      parts_(parts),
      piece_values_(piece_values),
      memory_(std::move(memory)),
      spinning_(comm.waiting() == Waiting::spinning),
      local_(static_cast<std::size_t>(parts)),
      all_(static_cast<std::size_t>(parts * comm.size())) {
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "other processes poll it");
}

ShmAllReduce::Half& ShmAllReduce::half_of(int rank) {
  return reinterpret_cast<Half*>(memory_->of(rank))[number_ % 2];
}

float* ShmAllReduce::values_of(int rank) {
  std::byte* values = memory_->of(rank) + 2 * sizeof(Half);
  return reinterpret_cast<float*>(values) + static_cast<std::int64_t>(number_ % 2) * parts_ * piece_values_;
}

void ShmAllReduce::wait_for(int from, const std::atomic<std::uint64_t>& number) {
  if (number.load(std::memory_order_acquire) == number_) return;
  auto now = Clock::now();
  const auto start_yielding = now + (spinning_ ? kSpin : Clock::duration::zero());
  auto listen = now + kListen;
  bool listened = false;
  for (; number.load(std::memory_order_acquire) != number_; now = Clock::now()) {
    if (now >= start_yielding) std::this_thread::yield();
    if (now < listen) continue;
    comm_.listen(from);
    listened = true;
    listen = now + kListen;
  }
  if (listened) comm_.listened();
}

// Leaves out values [skip_begin, skip_end), which no other rank reads.
void ShmAllReduce::publish_parts(const AllReduceJob& piece, std::int64_t skip_begin, std::int64_t skip_end) {
  number_++;
  float* to = values_of(comm_.rank());
  for (std::size_t p = 0; p < piece.local.size(); p++, to += piece_values_) {
    std::memcpy(to, piece.local[p], value_bytes(skip_begin));
    std::memcpy(to + skip_end, piece.local[p] + skip_end, value_bytes(piece.count - skip_end));
  }
  PartsReady& ready = half_of(comm_.rank()).parts;
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
    const PartsReady& ready = half_of(r).parts;
    wait_for(r, ready.number);
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
  half_of(me).slice.number.store(number_, std::memory_order_release);
  std::memcpy(piece.out + begin, sum, value_bytes(end - begin));
  for (int distance = 1; distance < ranks; distance++) {
    const int r = (me + distance) % ranks;
    wait_for(r, half_of(r).slice.number);
    std::memcpy(piece.out + begin_of(r), values_of(r) + begin_of(r),
                value_bytes(begin_of(r + 1) - begin_of(r)));
  }
  return sizeof(StepHeader) + value_bytes(parts_ * (piece.count - (end - begin)) + (end - begin));
}

}  // namespace ptrt
