// The reduction between CPU ranks, or of a rank that has all parts: in memory that the ranks share where they
// run on one host, else by messages, in the way that suits size and ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "runtime/sync/message_sum.h"
#include "runtime/sync/reduction.h"
#include "runtime/sync/shared_sum.h"
#include "runtime/sync/sum_job.h"

namespace ptrt {

// How a sum is done; all give the same bits.
enum class SumWay : std::uint8_t {
  shared_whole,   // in shared memory, every rank adds everything
  shared_slices,  // in shared memory, every rank adds a slice
  one_hop,        // the others by messages: see MessageSum
  at_first,
  slices,
};
inline constexpr SumWay kSumWays[] = {SumWay::shared_whole, SumWay::shared_slices, SumWay::one_hop,
                                      SumWay::at_first, SumWay::slices};
std::string_view to_string(SumWay way);
bool needs_shared_memory(SumWay way);
// What was quickest where it was measured (perf/PERFORMANCE.md); the same on all ranks. `bytes`: of a rank's
// parts.
SumWay best_way(int ranks, std::size_t bytes, bool shares_memory);

class HostReduction final : public Reduction {
 public:
  // `way`: for tests and measurements, which may change it later; else the best for each sum.
  HostReduction(TrackComm& comm, Backend& backend, StepState& state, std::int64_t parts,
                std::int64_t max_values, std::optional<SumWay> way = {});

  void sum(std::span<const float* const> local, std::int64_t count, float scale, const float* add_to,
           float* out) override;
  bool recordable() const override { return comm_.size() == 1; }
  std::string describe() const override { return comm_.size() == 1 ? "within the rank" : "between hosts"; }

  bool shares_memory() const { return shared_ != nullptr; }
  void set_way(std::optional<SumWay> way) { way_ = way; }

 private:
  std::uint64_t exchange(SumWay way, const SumJob& job);

  TrackComm& comm_;
  Backend& backend_;
  std::int64_t parts_;
  std::optional<SumWay> way_;
  HeaderCheck headers_;
  std::unique_ptr<SharedSum> shared_;   // null between hosts
  std::optional<MessageSum> messages_;  // none where all goes through shared memory
};

}  // namespace ptrt
