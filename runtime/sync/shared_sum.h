// Sums between ranks of one host, in memory that they share: a rank writes its parts once, and the others
// read them there. Small sums every rank adds itself; of large ones each adds a slice that the others copy.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/sync/sum_job.h"

namespace ptrt {

class SharedSum {
 public:
  // Null where the ranks share no memory. Collective.
  static std::unique_ptr<SharedSum> make(TrackComm& comm, Backend& backend, HeaderCheck& headers,
                                         std::int64_t parts, std::int64_t max_values);

  SharedSum(TrackComm& comm, Backend& backend, HeaderCheck& headers, std::int64_t parts,
            std::int64_t piece_values, std::unique_ptr<SharedMemory> memory);

  // Every rank adds all parts, if they fit into the memory; returns the bytes this rank wrote for others.
  std::uint64_t whole(const SumJob& job);
  // Every rank adds one slice.
  std::uint64_t slices(const SumJob& job);

 private:
  // A line of the cache that its rank writes and the others poll. Each half of the memory has its own, so
  // that a rank may be one sum ahead of those that still read.
  struct alignas(64) Post {
    StepHeader header;
    std::atomic<std::uint64_t> number;  // of the last piece whose parts are there
  };
  struct alignas(64) Mark {
    std::atomic<std::uint64_t> number;  // of the last piece whose slice is added
  };
  struct Half {
    Post post;
    Mark added;
  };

  Half& half_of(int rank);
  float* values_of(int rank);  // [part, piece_values_] of the half in use
  void post_parts(const SumJob& piece, std::int64_t skip_begin, std::int64_t skip_end);
  void take_parts(const SumJob& piece);
  std::uint64_t slices_of_piece(const SumJob& piece);
  // Until rank `from` has come that far.
  void wait_for(int from, const std::atomic<std::uint64_t>& number);

  TrackComm& comm_;
  Backend& backend_;
  HeaderCheck& headers_;
  std::int64_t parts_, piece_values_;
  std::unique_ptr<SharedMemory> memory_;
  bool spinning_;
  std::uint64_t number_ = 0;         // of the piece under way
  std::vector<const float*> local_;  // this rank's parts of the piece
  std::vector<const float*> all_;    // parts of all ranks
};

}  // namespace ptrt
