// Sums between ranks by messages. Each way trades hops, messages and bytes otherwise (docs/ARCHITECTURE.md);
// all give the bits of the one tree.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/sync/sum_job.h"

namespace ptrt {

// Every function returns the bytes that this rank sent. With n ranks and b bytes of parts a rank:
class MessageSum {
 public:
  MessageSum(TrackComm& comm, Backend& backend, HeaderCheck& headers, std::int64_t parts,
             std::int64_t max_values);

  // Everything to everyone, and all add: one hop, n - 1 messages of b a rank.
  std::uint64_t one_hop(const SumJob& job);
  // Everything to rank 0, which adds and sends the sum: two hops, 2 (n - 1) messages in all.
  std::uint64_t at_first(const SumJob& job);
  // Each rank adds one slice, then the sums are gathered: two hops, 2 (n - 1) messages of b / n a rank.
  std::uint64_t slices(const SumJob& job);

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
  void pack(const SumJob& job, Range values, std::byte* message);
  void take(int rank, const std::byte* message, bool from_first);
  void point_at_parts(const SumJob& job, Range mine, std::int64_t stride, std::size_t bytes);
  std::uint64_t to_everyone(std::size_t bytes, bool one_for_each);

  TrackComm& comm_;
  Backend& backend_;
  HeaderCheck& headers_;
  std::int64_t parts_;
  std::vector<std::byte> send_, recv_;
  std::vector<const float*> all_;  // parts of all ranks
  std::vector<Outgoing> sends_;
  std::vector<Incoming> receives_;
};

}  // namespace ptrt
