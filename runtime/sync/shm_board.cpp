#include "runtime/sync/shm_board.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kPieceValues = 256 * 1024;
constexpr Clock::duration kSpin = std::chrono::microseconds(100);  // then a waiting rank yields
constexpr Clock::duration kListen = std::chrono::milliseconds(2);  // between checks that the job continues

}  // namespace

std::unique_ptr<ShmBoard> ShmBoard::make(TrackComm& comm, std::int64_t parts, std::int64_t max_values) {
  const std::int64_t values = (std::min(max_values, kPieceValues / parts + 1) + 15) / 16 * 16;
  const auto bytes = static_cast<std::size_t>(parts * values) * sizeof(float);
  auto memory = comm.share(2 * (sizeof(Half) + bytes));
  if (memory == nullptr) return nullptr;
  return std::make_unique<ShmBoard>(comm, parts, values, std::move(memory));
}

ShmBoard::ShmBoard(TrackComm& comm, std::int64_t parts, std::int64_t values,
                   std::unique_ptr<SharedMemory> memory)
    : comm_(comm),
      parts_(parts),
      values_(values),
      memory_(std::move(memory)),
      spinning_(comm.waiting() == Waiting::spinning) {
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "other processes poll it");
}

float* ShmBoard::values_of(int rank, std::uint64_t number) {
  std::byte* values = memory_->of(rank) + 2 * sizeof(Half);
  return reinterpret_cast<float*>(values) + static_cast<std::int64_t>(number % 2) * parts_ * values_;
}

void ShmBoard::wait_for(int from, const std::atomic<std::uint64_t>& ready, std::uint64_t number) {
  if (ready.load(std::memory_order_acquire) == number) return;
  auto now = Clock::now();
  const auto start_yielding = now + (spinning_ ? kSpin : Clock::duration::zero());
  auto listen = now + kListen;
  bool listened = false;
  for (; ready.load(std::memory_order_acquire) != number; now = Clock::now()) {
    if (now >= start_yielding) std::this_thread::yield();
    if (now < listen) continue;
    comm_.listen(from);
    listened = true;
    listen = now + kListen;
  }
  if (listened) comm_.listened();
}

std::vector<int> ranks_on_my_host(TrackComm& comm) {
  const std::vector<int> hosts = comm.hosts();
  std::vector<int> ranks;
  for (int r = 0; r < comm.size(); r++)
    if (hosts[static_cast<std::size_t>(r)] == hosts[static_cast<std::size_t>(comm.rank())])
      ranks.push_back(r);
  return ranks;
}

}  // namespace ptrt
