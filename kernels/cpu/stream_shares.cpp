#include "kernels/cpu/stream_shares.h"

#include <algorithm>

#include "kernels/error.h"

namespace ptrt {
namespace {

constexpr std::uint32_t kJobsPerLook = 4;  // a look at the clock takes as long as some lines of weights
constexpr double kGain = 0.05;             // of one look, so that a single pause does not count for much
constexpr double kSlowest = 1.4, kFastest = 0.7;

}  // namespace

StreamShares::StreamShares(int workers) : shares_(static_cast<std::size_t>(workers)) {
  PTRT_CHECK(workers >= 1);
}

void StreamShares::split(std::int64_t total, std::int64_t quantum) {
  observes_ = ++jobs_ % kJobsPerLook == 0;
  double speed = 0, before = 0;
  for (const Share& share : shares_) speed += 1 / share.pace;
  std::int64_t begin = 0;
  for (Share& share : shares_) {
    before += 1 / share.pace;
    const double end = static_cast<double>(total) * before / speed / static_cast<double>(quantum);
    share.begin = begin;
    share.end = std::clamp(static_cast<std::int64_t>(end + 0.5) * quantum, begin, total);
    share.seconds = 0;
    share.taken.store(false, std::memory_order_relaxed);
    begin = share.end;
  }
  shares_.back().end = total;
}

StreamShares::Share& StreamShares::claim(int worker) {
  Share& own = shares_[static_cast<std::size_t>(worker)];
  if (!own.taken.exchange(true, std::memory_order_relaxed)) return own;
  for (Share& share : shares_)
    if (!share.taken.exchange(true, std::memory_order_relaxed)) return share;
  throw_failure("internal error: more runs than workers");
}

void StreamShares::finish() {
  double mean = 0;
  for (const Share& share : shares_) {
    if (share.seconds <= 0 || share.begin == share.end) return;
    mean += share.seconds / static_cast<double>(share.end - share.begin);
  }
  mean /= static_cast<double>(shares_.size());
  for (Share& share : shares_) {
    const double pace = share.seconds / static_cast<double>(share.end - share.begin) / mean;
    share.pace += kGain * (std::clamp(pace, kFastest, kSlowest) - share.pace);
  }
}

}  // namespace ptrt
