#include "runtime/emulated_comm.h"

#include <chrono>
#include <cstring>

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;

class EmulatedComm final : public TrackComm {
 public:
  EmulatedComm(int size, const LinkModel& link) : size_(size), link_(link) {}
  int size() const override { return size_; }
  int rank() const override { return 0; }
  void all_gather(const void* send, void* recv, std::size_t bytes) override { exchange(send, recv, bytes); }
  // Every rank sends what this one would send to itself.
  void all_to_all(const void* send, void* recv, std::size_t bytes) override { exchange(send, recv, bytes); }

 private:
  void exchange(const void* send, void* recv, std::size_t bytes) const {
    const auto end = Clock::now() + std::chrono::duration<double>(link_.gather_seconds(bytes, size_));
    for (int r = 0; r < size_; r++)
      std::memcpy(static_cast<std::byte*>(recv) + static_cast<std::size_t>(r) * bytes, send, bytes);
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
