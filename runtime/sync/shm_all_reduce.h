// All-reduce between the ranks of one host, in memory that they share: a rank writes its parts
// once, and the others read them there.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "runtime/sync/all_reduce_job.h"
#include "runtime/sync/step_header.h"

namespace ptrt {

// Every algorithm returns the bytes that this rank wrote for the others.
class ShmAllReduce {
 public:
  // Null where the ranks share no memory. Collective.
  static std::unique_ptr<ShmAllReduce> make(TrackComm& comm, Backend& backend, StepConsistency& consistency,
                                            std::int64_t parts, std::int64_t max_values);

  ShmAllReduce(TrackComm& comm, Backend& backend, StepConsistency& consistency, std::int64_t parts,
               std::int64_t piece_values, std::unique_ptr<SharedMemory> memory);

  // Every rank adds all parts. Sums that do not fit into the memory at once take two_shot().
  std::uint64_t one_shot(const AllReduceJob& job);
  // Every rank adds one slice, and copies the slices of the others.
  std::uint64_t two_shot(const AllReduceJob& job);

 private:
  // Cache lines that their rank writes and the others poll. Each half of the memory has its own, so
  // that a rank may be one sum ahead of those that still read.
  struct alignas(64) PartsReady {
    StepHeader header;
    std::atomic<std::uint64_t> number;  // of the last piece whose parts are written
  };
  struct alignas(64) SliceReady {
    std::atomic<std::uint64_t> number;  // of the last piece whose slice is added
  };
  struct Half {
    PartsReady parts;
    SliceReady slice;
  };

  Half& half_of(int rank);
  float* values_of(int rank);  // [part, piece_values_] of the half in use
  void publish_parts(const AllReduceJob& piece, std::int64_t skip_begin, std::int64_t skip_end);
  void await_parts(const AllReduceJob& piece);
  std::uint64_t two_shot_piece(const AllReduceJob& piece);
  // Waits until `number`, which rank `from` writes, is that of the current piece.
  void wait_for(int from, const std::atomic<std::uint64_t>& number);

  TrackComm& comm_;
  Backend& backend_;
  StepConsistency& consistency_;
  std::int64_t parts_, piece_values_;
  std::unique_ptr<SharedMemory> memory_;
  bool spinning_;
  std::uint64_t number_ = 0;         // of the current piece
  std::vector<const float*> local_;  // this rank's parts of the piece
  std::vector<const float*> all_;    // parts of all ranks
};

}  // namespace ptrt
