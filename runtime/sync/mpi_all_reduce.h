// All-reduce between ranks by the messages of a TrackComm. The algorithms differ in hops, messages
// and bytes (docs/ARCHITECTURE.md); all give the bits of the one tree.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "runtime/sync/all_reduce_job.h"
#include "runtime/sync/step_header.h"

namespace ptrt {

// Every algorithm returns the bytes that this rank sent. With n ranks and b bytes of parts a rank:
class MpiAllReduce {
 public:
  MpiAllReduce(TrackComm& comm, Backend& backend, StepConsistency& consistency, std::int64_t parts,
               std::int64_t max_values);

  // All-gather, every rank adds everything: one hop, n - 1 messages of b a rank.
  std::uint64_t one_shot(const AllReduceJob& job);
  // Gather to rank 0, which adds and broadcasts the sum: two hops, 2 (n - 1) messages in all.
  std::uint64_t root(const AllReduceJob& job);
  // Reduce-scatter, then all-gather: two hops, 2 (n - 1) messages of b / n a rank.
  std::uint64_t two_shot(const AllReduceJob& job);

 private:
  struct Range {
    std::int64_t begin, end;
    std::int64_t size() const { return end - begin; }
  };

  std::byte* to_send(std::int64_t index, std::size_t bytes) {
    return &send_[static_cast<std::size_t>(index) * bytes];
  }
  std::byte* received(std::int64_t index, std::size_t bytes) {
    return &recv_[static_cast<std::size_t>(index) * bytes];
  }
  void pack(const AllReduceJob& job, Range values, std::byte* message);
  void check_header(int rank, const std::byte* message, bool from_first);
  void point_at_parts(const AllReduceJob& job, Range mine, std::int64_t stride, std::size_t bytes);
  std::uint64_t exchange_with_all(std::size_t bytes, bool one_for_each);

  TrackComm& comm_;
  Backend& backend_;
  StepConsistency& consistency_;
  std::int64_t parts_;
  std::vector<std::byte> send_, recv_;
  std::vector<const float*> all_;  // parts of all ranks
  std::vector<Outgoing> sends_;
  std::vector<Incoming> receives_;
};

}  // namespace ptrt
