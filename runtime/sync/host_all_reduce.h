// The all-reduce of CPU ranks, or of one rank that has all parts: through memory that the ranks
// share where they run on one host, else by messages, with the algorithm that suits the size and
// the number of ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "runtime/sync/all_reduce.h"
#include "runtime/sync/all_reduce_job.h"
#include "runtime/sync/mpi_all_reduce.h"
#include "runtime/sync/shm_all_reduce.h"
#include "runtime/sync/two_level_all_reduce.h"

namespace ptrt {

inline constexpr AllReduceAlgorithm kAllReduceAlgorithms[] = {
    AllReduceAlgorithm::shm_one_shot, AllReduceAlgorithm::shm_two_shot, AllReduceAlgorithm::one_shot,
    AllReduceAlgorithm::root,         AllReduceAlgorithm::two_shot,     AllReduceAlgorithm::two_level};
std::string_view to_string(AllReduceAlgorithm algorithm);
// The quickest where it was measured (perf/PERFORMANCE.md), of those between `ranks` ranks that all
// share memory, or else by messages; the same choice on all ranks. `bytes`: of one rank's parts.
AllReduceAlgorithm choose_algorithm(int ranks, std::size_t bytes, bool shares_memory);

class HostAllReduce final : public AllReduce {
 public:
  // `algorithm`: for tests and measurements, which may change it later; else the best one for each
  // sum. Collective.
  HostAllReduce(TrackComm& comm, Backend& backend, StepState& state, std::int64_t parts,
                std::int64_t max_values, std::optional<AllReduceAlgorithm> algorithm = {});

  void sum(std::span<const float* const> local, std::int64_t count, float scale, const float* add_to,
           float* out) override;
  // Only messages travel by themselves; in shared memory the ranks do all the work.
  bool overlaps(std::int64_t count) const override;
  void start(int number, std::span<const float* const> local, std::int64_t count, float scale,
             const float* add_to, float* out) override;
  void poll() override;
  void finish(int number) override;
  bool recordable() const override { return comm_.size() == 1; }
  std::string describe() const override { return comm_.size() == 1 ? "within the rank" : "between hosts"; }

  bool shares_memory() const { return shm_ != nullptr; }
  // Whether these ranks can add so; messages only where `algorithm` was given, or nothing else is
  // there.
  bool offers(AllReduceAlgorithm algorithm) const;
  void set_algorithm(std::optional<AllReduceAlgorithm> algorithm) { algorithm_ = algorithm; }

 private:
  AllReduceAlgorithm algorithm_for(std::int64_t count) const;
  std::uint64_t run(AllReduceAlgorithm algorithm, const AllReduceJob& job);

  TrackComm& comm_;
  Backend& backend_;
  std::int64_t parts_;
  std::optional<AllReduceAlgorithm> algorithm_;
  StepConsistency consistency_;
  std::unique_ptr<ShmAllReduce> shm_;  // null between hosts
  std::unique_ptr<TwoLevelAllReduce>
      two_level_;                       // null unless there are several hosts, of several ranks each
  std::optional<MpiAllReduce> mpi_;     // where neither is, or an algorithm is given
  bool in_two_levels_[kInFlight] = {};  // of the sums in flight
};

}  // namespace ptrt
