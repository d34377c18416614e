#include "runtime/sync/host_all_reduce.h"

#include <algorithm>

#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "kernels/base/progress.h"
#include "runtime/job/fault.h"

namespace ptrt {
namespace {

constexpr std::size_t kShmOneShotBytes = 32 * 1024;  // at most; larger sums take two shots
// One hop instead of two, where the messages are few and small.
constexpr int kOneShotRanks = 4;
constexpr std::size_t kOneShotBytes = 8 * 1024;
// Between hosts a message costs processor time at both ends, whatever its size: up to this many
// bytes the fewest messages are best, above it the fewest bytes a rank.
constexpr std::size_t kRootBytes = 384 * 1024;

double seconds(std::int64_t ns) {
  return 1e-9 * static_cast<double>(ns);
}

}  // namespace

std::string_view to_string(AllReduceAlgorithm algorithm) {
  switch (algorithm) {
    case AllReduceAlgorithm::shm_one_shot:
      return "shm_one_shot";
    case AllReduceAlgorithm::shm_two_shot:
      return "shm_two_shot";
    case AllReduceAlgorithm::one_shot:
      return "one_shot";
    case AllReduceAlgorithm::root:
      return "root";
    case AllReduceAlgorithm::two_shot:
      return "two_shot";
    case AllReduceAlgorithm::two_level:
      return "two_level";
  }
  return "?";
}

AllReduceAlgorithm choose_algorithm(int ranks, std::size_t bytes, bool shares_memory) {
  if (shares_memory)
    return bytes <= kShmOneShotBytes ? AllReduceAlgorithm::shm_one_shot : AllReduceAlgorithm::shm_two_shot;
  if (ranks == 2 || (ranks <= kOneShotRanks && bytes <= kOneShotBytes)) return AllReduceAlgorithm::one_shot;
  return bytes <= kRootBytes ? AllReduceAlgorithm::root : AllReduceAlgorithm::two_shot;
}

HostAllReduce::HostAllReduce(TrackComm& comm, Backend& backend, StepState& state, std::int64_t parts,
                             std::int64_t max_values, std::optional<AllReduceAlgorithm> algorithm)
    : comm_(comm), backend_(backend), parts_(parts), algorithm_(algorithm), consistency_(comm, state) {
  if (comm.size() == 1) return;
  if (std::ranges::count(comm.hosts(), 0) == comm.size()) {
    if (auto board = ShmBoard::make(comm, parts, max_values))
      shm_ = std::make_unique<ShmAllReduce>(comm, backend, consistency_, parts, std::move(board));
  } else {
    two_level_ = TwoLevelAllReduce::make(comm, backend, consistency_, parts, max_values);
  }
  if ((shm_ != nullptr || two_level_ != nullptr) && !algorithm) return;
  MpiAllReduce::Members all;
  for (int r = 0; r < comm.size(); r++) all.ranks.push_back(r);
  mpi_.emplace(comm, std::move(all), backend, consistency_, parts, max_values);
}

bool HostAllReduce::offers(AllReduceAlgorithm algorithm) const {
  switch (algorithm) {
    case AllReduceAlgorithm::shm_one_shot:
    case AllReduceAlgorithm::shm_two_shot:
      return shm_ != nullptr;
    case AllReduceAlgorithm::two_level:
      return two_level_ != nullptr;
    default:
      return mpi_.has_value();
  }
}

void HostAllReduce::sum(std::span<const float* const> local, std::int64_t count, float scale,
                        const float* add_to, float* out) {
  fault_point("sync");
  const std::int64_t start = now_ns();
  if (comm_.size() == 1) {
    backend_.tree_sum(local, count, scale, add_to, out);
    stats_.seconds += seconds(now_ns() - start);
  } else {
    PTRT_CHECK(static_cast<std::int64_t>(local.size()) == parts_);
    consistency_.begin(++sums_, start);
    stats_.bytes_sent += run(algorithm_for(count), {local, count, scale, add_to, out});
    const std::int64_t end = now_ns();
    stats_.seconds += seconds(end - start);
    stats_.wait_seconds +=
        seconds(std::clamp<std::int64_t>(consistency_.last_ready_ns() - start, 0, end - start));
  }
  stats_.sync_points++;
  note_progress();
}

AllReduceAlgorithm HostAllReduce::algorithm_for(std::int64_t count) const {
  if (algorithm_) return *algorithm_;
  if (two_level_ != nullptr) return AllReduceAlgorithm::two_level;
  const auto bytes = static_cast<std::size_t>(parts_ * count) * sizeof(float);
  return choose_algorithm(comm_.size(), bytes, shares_memory());
}

std::uint64_t HostAllReduce::run(AllReduceAlgorithm algorithm, const AllReduceJob& job) {
  PTRT_CHECK(offers(algorithm));
  switch (algorithm) {
    case AllReduceAlgorithm::shm_one_shot:
      return shm_->one_shot(job);
    case AllReduceAlgorithm::shm_two_shot:
      return shm_->two_shot(job);
    case AllReduceAlgorithm::two_level:
      return two_level_->run(job);
    default:
      return mpi_->run(algorithm, job);
  }
}

bool HostAllReduce::overlaps(std::int64_t count) const {
  if (comm_.size() == 1 || shares_memory()) return false;
  const AllReduceAlgorithm algorithm = algorithm_for(count);
  if (algorithm != AllReduceAlgorithm::two_level) return offers(algorithm);
  return two_level_ != nullptr && count <= two_level_->most_in_flight();
}

void HostAllReduce::start(int number, std::span<const float* const> local, std::int64_t count, float scale,
                          const float* add_to, float* out) {
  fault_point("sync");
  PTRT_CHECK(overlaps(count) && static_cast<std::int64_t>(local.size()) == parts_);
  const std::int64_t begin = now_ns();
  consistency_.begin(++sums_, begin);
  const AllReduceAlgorithm algorithm = algorithm_for(count);
  PTRT_CHECK(offers(algorithm));
  in_two_levels_[number] = algorithm == AllReduceAlgorithm::two_level;
  if (in_two_levels_[number])
    two_level_->start(number, {local, count, scale, add_to, out});
  else
    mpi_->start(number, algorithm, {local, count, scale, add_to, out});
  if (number == 0) stats_.sync_points++;
  stats_.seconds += seconds(now_ns() - begin);
}

void HostAllReduce::poll() {
  const std::int64_t begin = now_ns();
  for (int number = 0; number < kInFlight; number++) {
    if (in_two_levels_[number])
      two_level_->poll(number);
    else if (mpi_)
      mpi_->poll(number);
  }
  stats_.seconds += seconds(now_ns() - begin);
}

void HostAllReduce::finish(int number) {
  const std::int64_t begin = now_ns();
  stats_.bytes_sent += in_two_levels_[number] ? two_level_->finish(number) : mpi_->finish(number);
  note_progress();  // no message was waited for where poll() had ended it
  const std::int64_t end = now_ns();
  stats_.seconds += seconds(end - begin);
  stats_.wait_seconds +=
      seconds(std::clamp<std::int64_t>(consistency_.last_ready_ns() - begin, 0, end - begin));
}

}  // namespace ptrt
