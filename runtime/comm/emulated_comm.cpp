#include "runtime/comm/emulated_comm.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;

class EmulatedComm final : public TrackComm {
 public:
  EmulatedComm(int size, const LinkModel& link) : size_(size), link_(link) {}
  int size() const override { return size_; }
  int rank() const override { return 0; }
  void all_gather(const void* send, void* recv, std::size_t bytes) override { gather(send, recv, bytes); }
  // Every rank sends what this one would send to itself.
  void all_to_all(const void* send, void* recv, std::size_t bytes) override { gather(send, recv, bytes); }
  // An absent rank sends back what it receives.
  void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) override {
    const auto start = Clock::now();
    std::size_t bytes = 0;
    for (const Incoming& message : receives) {
      const auto answer = std::ranges::find(sends, message.from, &Outgoing::to);
      PTRT_CHECK(answer != sends.end() && answer->bytes == message.bytes);
      std::memcpy(message.data, answer->data, message.bytes);
      bytes += message.bytes;
    }
    // gather_seconds() takes the bytes of one rank.
    wait_until(start, bytes / static_cast<std::size_t>(size_ - 1));
  }
  std::unique_ptr<SharedMemory> share(std::size_t) override { return nullptr; }
  Waiting waiting() const override { return Waiting::spinning; }
  void listen(int) override {}

 private:
  void gather(const void* send, void* recv, std::size_t bytes) const {
    const auto start = Clock::now();
    for (int r = 0; r < size_; r++)
      std::memcpy(static_cast<std::byte*>(recv) + static_cast<std::size_t>(r) * bytes, send, bytes);
    wait_until(start, bytes);
  }
  void wait_until(Clock::time_point start, std::size_t bytes) const {
    const auto end = start + std::chrono::duration<double>(link_.gather_seconds(bytes, size_));
    while (Clock::now() < end) {
    }
  }

  int size_;
  LinkModel link_;
};

}  // namespace

std::unique_ptr<TrackComm> make_emulated_comm(int size, const LinkModel& link) {
  return std::make_unique<EmulatedComm>(size, link);
}

}  // namespace ptrt
