#include "runtime/sync/shared_sum.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;

// Larger sums go in pieces: memory is bounded, and what a rank wrote is still in a cache when others read it.
constexpr std::int64_t kPieceValues = 256 * 1024;
constexpr Clock::duration kSpin = std::chrono::microseconds(100);  // then a waiting rank gives way
constexpr Clock::duration kListen = std::chrono::milliseconds(2);  // between looks whether the job goes on

std::size_t value_bytes(std::int64_t values) {
  return static_cast<std::size_t>(values) * sizeof(float);
}

}  // namespace

std::unique_ptr<SharedSum> SharedSum::make(TrackComm& comm, Backend& backend, HeaderCheck& headers,
                                           std::int64_t parts, std::int64_t max_values) {
  const std::int64_t piece = (std::min(max_values, kPieceValues / parts + 1) + 15) / 16 * 16;
  auto memory = comm.share(2 * (sizeof(Half) + value_bytes(parts * piece)));
  if (memory == nullptr) return nullptr;
  return std::make_unique<SharedSum>(comm, backend, headers, parts, piece, std::move(memory));
}

SharedSum::SharedSum(TrackComm& comm, Backend& backend, HeaderCheck& headers, std::int64_t parts,
                     std::int64_t piece_values, std::unique_ptr<SharedMemory> memory)
    : comm_(comm),
      backend_(backend),
      headers_(headers),
      parts_(parts),
      piece_values_(piece_values),
      memory_(std::move(memory)),
      spinning_(comm.waiting() == Waiting::spinning),
      local_(static_cast<std::size_t>(parts)),
      all_(static_cast<std::size_t>(parts * comm.size())) {
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "other processes poll it");
}

SharedSum::Half& SharedSum::half_of(int rank) {
  return reinterpret_cast<Half*>(memory_->of(rank))[number_ % 2];
}

float* SharedSum::values_of(int rank) {
  std::byte* values = memory_->of(rank) + 2 * sizeof(Half);
  return reinterpret_cast<float*>(values) + static_cast<std::int64_t>(number_ % 2) * parts_ * piece_values_;
}

void SharedSum::wait_for(int from, const std::atomic<std::uint64_t>& number) {
  if (number.load(std::memory_order_acquire) == number_) return;
  auto now = Clock::now();
  const auto give_way = now + (spinning_ ? kSpin : Clock::duration::zero());
  auto listen = now + kListen;
  bool listened = false;
  for (; number.load(std::memory_order_acquire) != number_; now = Clock::now()) {
    if (now >= give_way) std::this_thread::yield();
    if (now < listen) continue;
    comm_.listen(from);
    listened = true;
    listen = now + kListen;
  }
  if (listened) comm_.listened();
}

// Values [skip_begin, skip_end) are left out: no other rank reads them.
void SharedSum::post_parts(const SumJob& piece, std::int64_t skip_begin, std::int64_t skip_end) {
  number_++;
  float* to = values_of(comm_.rank());
  for (std::size_t p = 0; p < piece.local.size(); p++, to += piece_values_) {
    std::memcpy(to, piece.local[p], value_bytes(skip_begin));
    std::memcpy(to + skip_end, piece.local[p] + skip_end, value_bytes(piece.count - skip_end));
  }
  Post& post = half_of(comm_.rank()).post;
  post.header = headers_.outgoing();
  post.number.store(number_, std::memory_order_release);
}

void SharedSum::take_parts(const SumJob& piece) {
  const int ranks = comm_.size(), me = comm_.rank();
  for (int r = 0; r < ranks; r++) {
    const float** parts = all_.data() + r * parts_;
    if (r == me) {
      std::ranges::copy(piece.local, parts);
      continue;
    }
    const Post& post = half_of(r).post;
    wait_for(r, post.number);
    headers_.take(r, post.header, r == 0);
    for (std::int64_t p = 0; p < parts_; p++) parts[p] = values_of(r) + p * piece_values_;
  }
}

std::uint64_t SharedSum::whole(const SumJob& job) {
  if (job.count > piece_values_) return slices(job);
  post_parts(job, 0, 0);
  take_parts(job);
  backend_.tree_sum(all_, job.count, job.scale, job.add_to, job.out);
  return sizeof(StepHeader) + value_bytes(parts_ * job.count);
}

std::uint64_t SharedSum::slices(const SumJob& job) {
  std::uint64_t bytes = 0;
  for (std::int64_t first = 0; first < job.count; first += piece_values_) {
    for (std::size_t p = 0; p < job.local.size(); p++) local_[p] = job.local[p] + first;
    bytes += slices_of_piece({local_, std::min(piece_values_, job.count - first), job.scale,
                              job.add_to != nullptr ? job.add_to + first : nullptr, job.out + first});
  }
  return bytes;
}

// Slice r is added by rank r, into its own memory in the place of a slice that nobody else reads.
std::uint64_t SharedSum::slices_of_piece(const SumJob& piece) {
  const int ranks = comm_.size(), me = comm_.rank();
  const std::int64_t width = slice_width(piece.count, ranks);
  const auto begin_of = [&](std::int64_t rank) { return std::min(rank * width, piece.count); };
  const std::int64_t begin = begin_of(me), end = begin_of(me + 1);
  post_parts(piece, begin, end);
  take_parts(piece);
  float* sum = values_of(me) + begin;
  if (end > begin) {
    for (const float*& part : all_) part += begin;
    backend_.tree_sum(all_, end - begin, piece.scale,
                      piece.add_to != nullptr ? piece.add_to + begin : nullptr, sum);
  }
  half_of(me).added.number.store(number_, std::memory_order_release);
  std::memcpy(piece.out + begin, sum, value_bytes(end - begin));
  for (int distance = 1; distance < ranks; distance++) {
    const int r = (me + distance) % ranks;
    wait_for(r, half_of(r).added.number);
    std::memcpy(piece.out + begin_of(r), values_of(r) + begin_of(r),
                value_bytes(begin_of(r + 1) - begin_of(r)));
  }
  return sizeof(StepHeader) + value_bytes(parts_ * (piece.count - (end - begin)) + (end - begin));
}

}  // namespace ptrt
