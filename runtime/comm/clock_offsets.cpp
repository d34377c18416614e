#include "runtime/comm/clock_offsets.h"

#include <xxhash.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "kernels/base/clock.h"

namespace ptrt {
namespace {

constexpr int kRounds = 20;

// The same for processes on one kernel; 0 where it cannot be read.
std::uint64_t boot_id() {
  std::ifstream in("/proc/sys/kernel/random/boot_id");
  std::string id;
  if (!(in >> id)) return 0;
  return XXH3_64bits(id.data(), id.size());
}

}  // namespace

ClockOffsets::ClockOffsets(TrackComm& comm) : offsets_(static_cast<std::size_t>(comm.size()), 0) {
  if (comm.size() == 1) return;
  const std::size_t ranks = offsets_.size(), me = static_cast<std::size_t>(comm.rank());
  const std::uint64_t boot = boot_id();
  std::vector<std::uint64_t> boots(ranks);
  comm.all_gather(&boot, boots.data(), sizeof boot);
  if (boot != 0 && std::ranges::count(boots, boot) == std::ssize(boots)) return;

  // quickest[r]: the least difference between this clock when rank r's message arrived and its
  // clock when it was sent.
  std::vector<std::int64_t> sent(ranks), quickest(ranks, std::numeric_limits<std::int64_t>::max());
  for (int round = 0; round < kRounds; round++) {
    const std::int64_t mine = now_ns();
    comm.all_gather(&mine, sent.data(), sizeof mine);
    const std::int64_t here = now_ns();
    for (std::size_t r = 0; r < ranks; r++) quickest[r] = std::min(quickest[r], here - sent[r]);
  }
  std::vector<std::int64_t> all(ranks * ranks);
  comm.all_gather(quickest.data(), all.data(), ranks * sizeof(std::int64_t));
  for (std::size_t r = 0; r < ranks; r++)
    if (r != me && (boot == 0 || boots[r] != boot)) offsets_[r] = (quickest[r] - all[r * ranks + me]) / 2;
}

}  // namespace ptrt
