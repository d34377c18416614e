// All-reduce over several hosts with several ranks on each: a host's ranks share memory, and one of
// them, the leader, exchanges messages with the other leaders for all of them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/backend.h"
#include "runtime/sync/all_reduce_job.h"
#include "runtime/sync/mpi_all_reduce.h"
#include "runtime/sync/shm_board.h"
#include "runtime/sync/step_header.h"

namespace ptrt {

// Where a host's parts form a subtree of the tree over all parts, its leader adds them and sends their
// sum; otherwise it sends them all, in one message.
class TwoLevelAllReduce {
 public:
  static constexpr int kInFlight = MpiAllReduce::kInFlight;

  // Null, on all ranks, unless there are several hosts, all with the same number of ranks, several,
  // and with memory to share. Collective.
  static std::unique_ptr<TwoLevelAllReduce> make(TrackComm& comm, Backend& backend,
                                                 StepConsistency& consistency, std::int64_t parts,
                                                 std::int64_t max_values);

  TwoLevelAllReduce(TrackComm& comm, Backend& backend, StepConsistency& consistency, std::int64_t parts,
                    std::int64_t max_values, std::unique_ptr<ShmBoard> board);

  // As in MpiAllReduce; the messages' algorithm is chosen by the bytes of a leader's parts. start()
  // takes up to most_in_flight() values; run() does larger sums in pieces.
  std::int64_t most_in_flight() const { return board_->values(); }
  std::uint64_t run(const AllReduceJob& job);
  void start(int number, const AllReduceJob& job);
  void poll(int number);
  std::uint64_t finish(int number);

 private:
  enum class Stage : std::uint8_t {
    ended,
    gathering,   // the leader waits for the parts of its host
    exchanging,  // the leader waits for the other leaders
    waiting,     // another rank waits for the leader
  };
  struct Sum {
    AllReduceJob job = {};
    Stage stage = Stage::ended;
    std::uint64_t on_board = 0;  // its number there
    std::uint64_t step_sum = 0;  // number within the step
    std::int64_t ready_ns = 0;   // StepConsistency::last_ready_ns()
    std::uint64_t sent = 0;
  };

  bool leads() const { return leaders_.has_value(); }
  void begin(int number, const AllReduceJob& job, bool copies_parts);
  void publish_parts(const Sum& sum);
  float* place_of_sum(const Sum& sum);
  bool parts_there(const Sum& sum);
  void exchange_with_leaders(int number);
  void publish_sum(Sum& sum);
  void take_sum(Sum& sum);

  TrackComm& comm_;
  Backend& backend_;
  StepConsistency& consistency_;
  std::int64_t parts_;
  std::vector<int> host_;                // the ranks of this host, ascending; the first leads
  bool adds_;                            // the host's parts form a subtree
  std::unique_ptr<ShmBoard> board_;      // with a place for the sum after the parts
  std::optional<MpiAllReduce> leaders_;  // on leaders
  std::uint64_t number_ = 0;             // of the last sum on the board
  Sum sums_[kInFlight];
  std::vector<const float*> of_host_;  // parts of the host's ranks
  std::vector<const float*> piece_;    // this rank's parts of a piece
};

}  // namespace ptrt
