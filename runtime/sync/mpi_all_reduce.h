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

// Each sum is a row of transfers; what follows a transfer is done when it has ended. Up to kInFlight
// sums may be in flight, by number. With n ranks and b bytes of parts a rank:
//   one_shot  all-gather, every rank adds everything: one transfer, n - 1 messages of b a rank
//   root      gather to rank 0, which adds and broadcasts the sum: two, 2 (n - 1) messages in all
//   two_shot  reduce-scatter, then all-gather: two, 2 (n - 1) messages of b / n a rank
class MpiAllReduce {
 public:
  static constexpr int kInFlight = TrackComm::kTransfers;

  // Who takes part: ranks of the TrackComm, ascending, its first among them. order[i · parts + p]:
  // which leaf of the tree part p of members[i] is; empty: that number itself.
  struct Members {
    std::vector<int> ranks;
    std::vector<std::int64_t> order = {};
  };

  // Sums in flight have at most max_values values together.
  MpiAllReduce(TrackComm& comm, Members members, Backend& backend, StepConsistency& consistency,
               std::int64_t parts, std::int64_t max_values);
  ~MpiAllReduce();
  MpiAllReduce(const MpiAllReduce&) = delete;
  MpiAllReduce& operator=(const MpiAllReduce&) = delete;

  int size() const { return static_cast<int>(members_.ranks.size()); }  // members

  // Returns the bytes that this rank sent. No other sum may be in flight.
  std::uint64_t run(AllReduceAlgorithm algorithm, const AllReduceJob& job);

  // The sum of the last StepConsistency::begin(); copies the parts. job.add_to and job.out
  // belong to the sum until it ends, by poll() or finish().
  void start(int number, AllReduceAlgorithm algorithm, const AllReduceJob& job);
  bool poll(int number);  // does what can be done without waiting; true when none is in flight (any more)
  // Waits for its end. Returns the bytes sent. The consistency is then that of this sum.
  std::uint64_t finish(int number);

 private:
  struct Range {
    std::int64_t begin, end;
    std::int64_t size() const { return end - begin; }
  };
  struct Sum {
    AllReduceAlgorithm algorithm = AllReduceAlgorithm::one_shot;
    AllReduceJob job = {};       // local: empty where the parts were copied
    std::uint64_t step_sum = 0;  // number of this sum within the step
    std::int64_t ready_ns = 0;   // StepConsistency::last_ready_ns()
    int transfers = 0;           // ended so far
    bool in_flight = false;
    std::uint64_t sent = 0;
    std::size_t message = 0;  // bytes of one with parts
    std::size_t send_bytes = 0, recv_bytes = 0;
    std::byte *send = nullptr, *recv = nullptr;

    std::byte* to_send(std::int64_t index) const { return send + static_cast<std::size_t>(index) * message; }
    std::byte* received(std::int64_t index) const { return recv + static_cast<std::size_t>(index) * message; }
  };

  void begin(int number, AllReduceAlgorithm algorithm, const AllReduceJob& job, bool copies_parts);
  void place(int number);
  // After a transfer: true when that was the last one.
  bool advance(int number);
  void gather(int number, bool one_for_each);
  bool advance_root(int number);
  bool advance_two_shot(int number);
  Range slice(const Sum& sum, std::int64_t rank) const;
  void pack(const AllReduceJob& job, Range values, std::byte* message);
  void check_header(int member, const std::byte* message, bool from_first);
  void check_headers_of_others(const Sum& sum);
  void add(const Sum& sum, Range mine, std::int64_t stride);

  // Messages, parts and slices are numbered by member.
  int rank_of(int member) const { return members_.ranks[static_cast<std::size_t>(member)]; }

  TrackComm& comm_;
  Members members_;
  int me_;  // this rank among the members
  Backend& backend_;
  StepConsistency& consistency_;
  std::int64_t parts_;
  Sum sums_[kInFlight];
  std::vector<std::byte> send_, recv_;  // a first sum takes from the front, a second from the back
  std::vector<const float*> all_;       // parts of all ranks
  std::vector<Outgoing> sends_;
  std::vector<Incoming> receives_;
};

}  // namespace ptrt
