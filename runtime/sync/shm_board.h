// Memory that the ranks of a host share for their sums: each rank writes its own places, and the
// others poll and read them there.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/comm/track_comm.h"
#include "runtime/sync/step_header.h"

namespace ptrt {

// Sums are numbered from 1 and use two halves of the memory in turns, so that a rank may be one sum
// ahead of those that still read. A number is stored with release order once what it tells of is
// written. Ranks are those of the TrackComm.
class ShmBoard {
 public:
  // Cache lines that their rank writes and the others poll.
  struct alignas(64) PartsReady {
    StepHeader header;
    std::atomic<std::uint64_t> number;  // of the last sum whose parts are written
  };
  struct alignas(64) SumReady {
    StepHeader header;                  // where a rank adds for the others
    std::atomic<std::uint64_t> number;  // of the last one whose sum, or slice of it, is written
  };
  struct Half {
    PartsReady parts;
    SumReady sum;
  };

  // For sums of up to values() values, at least one and at most max_values; larger ones are done in
  // pieces: memory is bounded, and a piece is still in a cache when the others read it. Null, on all
  // ranks, where a host has no memory left. Collective.
  static std::unique_ptr<ShmBoard> make(TrackComm& comm, std::int64_t parts, std::int64_t max_values);

  ShmBoard(TrackComm& comm, std::int64_t parts, std::int64_t values, std::unique_ptr<SharedMemory> memory);

  std::int64_t values() const { return values_; }
  Half& half_of(int rank, std::uint64_t number) {
    return reinterpret_cast<Half*>(memory_->of(rank))[number % 2];
  }
  // [part, values()]
  float* values_of(int rank, std::uint64_t number);
  // Waits until `ready`, which rank `from` writes, has `number`.
  void wait_for(int from, const std::atomic<std::uint64_t>& ready, std::uint64_t number);

 private:
  TrackComm& comm_;
  std::int64_t parts_, values_;
  std::unique_ptr<SharedMemory> memory_;
  bool spinning_;
};

// The ranks of `comm` on this rank's host, ascending.
std::vector<int> ranks_on_my_host(TrackComm& comm);

}  // namespace ptrt
