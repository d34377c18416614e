#include "runtime/comm/emulated_comm.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>

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
    wait_until(answer(sends, receives));
  }
  void start(int transfer, std::span<const Outgoing> sends, std::span<const Incoming> receives) override {
    arrives_[transfer] = last_arrival_ = answer(sends, receives);
  }
  bool poll(int transfer) override { return Clock::now() >= arrives_[transfer]; }
  void finish(int transfer) override { wait_until(arrives_[transfer]); }
  // Each on a host of its own.
  std::vector<int> hosts() override {
    std::vector<int> all(static_cast<std::size_t>(size_));
    std::iota(all.begin(), all.end(), 0);
    return all;
  }
  std::unique_ptr<SharedMemory> share(std::size_t) override { return nullptr; }
  Waiting waiting() const override { return Waiting::spinning; }
  void listen(int) override {}

 private:
  // Fills in the answers to a transfer that starts now, and returns when they arrive.
  Clock::time_point answer(std::span<const Outgoing> sends, std::span<const Incoming> receives) const {
    // Transfers in flight share the link: one moves after the other, and their latencies overlap.
    const auto start = std::max(Clock::now(), last_arrival_ - microseconds(link_.latency_us));
    std::size_t bytes = 0;
    for (const Incoming& message : receives) {
      const auto answer = std::ranges::find(sends, message.from, &Outgoing::to);
      PTRT_CHECK(answer != sends.end() && answer->bytes == message.bytes);
      std::memcpy(message.data, answer->data, message.bytes);
      bytes += message.bytes;
    }
    // gather_seconds() takes the bytes of one rank.
    return arrival(start, bytes / static_cast<std::size_t>(size_ - 1));
  }
  void gather(const void* send, void* recv, std::size_t bytes) const {
    const auto start = Clock::now();
    for (int r = 0; r < size_; r++)
      std::memcpy(static_cast<std::byte*>(recv) + static_cast<std::size_t>(r) * bytes, send, bytes);
    wait_until(arrival(start, bytes));
  }
  Clock::time_point arrival(Clock::time_point start, std::size_t bytes) const {
    return start + microseconds(1e6 * link_.gather_seconds(bytes, size_));
  }
  static Clock::duration microseconds(double count) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::micro>(count));
  }
  static void wait_until(Clock::time_point end) {
    while (Clock::now() < end) {
    }
  }

  int size_;
  LinkModel link_;
  Clock::time_point arrives_[kTransfers] = {}, last_arrival_ = {};
};

}  // namespace

std::unique_ptr<TrackComm> make_emulated_comm(int size, const LinkModel& link) {
  return std::make_unique<EmulatedComm>(size, link);
}

}  // namespace ptrt
