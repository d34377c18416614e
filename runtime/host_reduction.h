// The reduction between CPU ranks, or of a rank that has all parts. Small messages go to every rank at once,
// one hop; of large ones each rank adds a slice, and the sums are gathered.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/clock_offsets.h"
#include "runtime/reduction.h"

namespace ptrt {

class HostReduction final : public Reduction {
 public:
  HostReduction(TrackComm& comm, Backend& backend, StepState& state, std::int64_t parts,
                std::int64_t max_values);

  void sum(std::span<const float* const> local, std::int64_t count, float scale, const float* add_to,
           float* out) override;
  bool recordable() const override { return comm_.size() == 1; }
  std::string describe() const override { return comm_.size() == 1 ? "within the rank" : "between hosts"; }

 private:
  struct Job {
    std::span<const float* const> local;
    std::int64_t count;
    float scale;
    const float* add_to;
    float* out;
  };
  void exchange_whole(const Job& job);
  void exchange_slices(const Job& job);
  void take_headers(std::size_t message_bytes);
  std::byte* message(std::vector<std::byte>& buffer, std::int64_t index, std::size_t message_bytes) const;

  TrackComm& comm_;
  Backend& backend_;
  StepState& state_;
  std::int64_t parts_per_rank_;
  ClockOffsets offsets_;
  StepHeader header_;              // of the messages under way
  std::int64_t last_sent_ns_ = 0;  // when the slowest rank sent, on this rank's clock
  std::vector<std::byte> send_, recv_;
  std::vector<const float*> all_;  // parts of all ranks
};

}  // namespace ptrt
