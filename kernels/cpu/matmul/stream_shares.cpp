#include "kernels/cpu/matmul/stream_shares.h"

#include <algorithm>
#include <bit>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

constexpr std::uint32_t kJobsPerLook = 4;  // a look at the clock takes as long as some lines of weights
constexpr double kGain = 0.05;             // of one look, so that a single pause does not count for much
constexpr int kSizes = 65;                 // a size for each width of the number of bytes
constexpr double kSlowest = 1.4, kFastest = 0.7;

}  // namespace

StreamShares::StreamShares(int workers)
    : workers_(static_cast<std::size_t>(workers)), shares_(kSizes * workers_.size()), jobs_(kSizes) {
  PTRT_CHECK(workers >= 1);
  for (int size = 0; size < kSizes; ++size) set_runs(shares_of(size));
  now_ = shares_of(0);
}

void StreamShares::set_runs(std::span<Share> shares) {
  double speed = 0, before = 0;
  for (const Share& share : shares) speed += 1 / share.pace;
  for (Share& share : shares) share.upto = (before += 1 / share.pace) / speed;
}

void StreamShares::begin_job(std::int64_t total, std::int64_t quantum, std::int64_t bytes) {
  const int size = std::bit_width(static_cast<std::uint64_t>(bytes));
  now_ = shares_of(size);
  // Counted by size: the lists of a step come in a fixed order, and a common count would always
  // time the same ones.
  looks_ = ++jobs_[static_cast<std::size_t>(size)] % kJobsPerLook == 0;
  ++job_;
  total_ = total;
  quantum_ = quantum;
}

std::int64_t StreamShares::end_of(int run) const {
  if (run + 1 == static_cast<int>(workers_.size())) return total_;
  const double end = static_cast<double>(total_) * now_[static_cast<std::size_t>(run)].upto;
  return std::min(static_cast<std::int64_t>(end / static_cast<double>(quantum_) + 0.5) * quantum_, total_);
}

int StreamShares::claim(int worker) {
  const auto takes = [this](Worker& w) { return w.taken.exchange(job_, std::memory_order_relaxed) != job_; };
  if (takes(workers_[static_cast<std::size_t>(worker)])) return worker;
  const auto late = std::ranges::find_if(workers_, takes);
  PTRT_CHECK(late != workers_.end());
  return static_cast<int>(late - workers_.begin());
}

void StreamShares::tell(int run, double seconds) {
  Worker& worker = workers_[static_cast<std::size_t>(run)];
  worker.seconds = seconds;
  worker.told = job_;
}

void StreamShares::end_job() {
  if (!looks_) return;
  const auto count = static_cast<int>(workers_.size());
  const auto seconds_a_unit = [this](int run) {
    return workers_[static_cast<std::size_t>(run)].seconds / static_cast<double>(end_of(run) - begin_of(run));
  };
  double mean = 0;
  for (int run = 0; run < count; ++run) {
    if (workers_[static_cast<std::size_t>(run)].told != job_ || begin_of(run) == end_of(run)) return;
    mean += seconds_a_unit(run) / count;
  }
  if (!(mean > 0)) return;
  for (int run = 0; run < count; ++run) {
    double& pace = now_[static_cast<std::size_t>(run)].pace;
    pace += kGain * (std::clamp(seconds_a_unit(run) / mean, kFastest, kSlowest) - pace);
  }
  set_runs(now_);
}

}  // namespace ptrt
