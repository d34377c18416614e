// All-reduce between the ranks of one host, in memory that they share: a rank writes its parts
// once, and the others read them there.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "runtime/sync/all_reduce_job.h"
#include "runtime/sync/shm_board.h"

namespace ptrt {

// Every algorithm returns the bytes that this rank wrote for the others.
class ShmAllReduce {
 public:
  // All ranks of `comm` are on one host and have `board`, for so many parts a rank.
  ShmAllReduce(TrackComm& comm, Backend& backend, StepConsistency& consistency, std::int64_t parts,
               std::unique_ptr<ShmBoard> board);

  // Every rank adds all parts. Sums that do not fit into the memory at once take two_shot().
  std::uint64_t one_shot(const AllReduceJob& job);
  // Every rank adds one slice, and copies the slices of the others.
  std::uint64_t two_shot(const AllReduceJob& job);

 private:
  void publish_parts(const AllReduceJob& piece, std::int64_t skip_begin, std::int64_t skip_end);
  void await_parts(const AllReduceJob& piece);
  std::uint64_t two_shot_piece(const AllReduceJob& piece);
  float* values_of(int rank) { return board_->values_of(rank, number_); }
  ShmBoard::Half& half_of(int rank) { return board_->half_of(rank, number_); }

  TrackComm& comm_;
  Backend& backend_;
  StepConsistency& consistency_;
  std::int64_t parts_;
  std::unique_ptr<ShmBoard> board_;
  std::int64_t piece_values_;        // = board_->values()
  std::uint64_t number_ = 0;         // of the current piece
  std::vector<const float*> local_;  // this rank's parts of the piece
  std::vector<const float*> all_;    // parts of all ranks
};

}  // namespace ptrt
