#include "runtime/model/step_recorder.h"

#include <algorithm>

namespace ptrt {

std::int64_t recorded_rows(std::int64_t rows, std::int64_t most) {
  std::int64_t filled = 1;
  while (filled < rows) filled = filled < 8 ? 2 * filled : filled + 8;
  return std::min(filled, most);
}

StepRecorder::StepRecorder(Backend& backend, const std::vector<AllReduce*>& all_reduces) : backend_(backend) {
  std::ranges::copy_if(all_reduces, std::back_inserter(all_reduces_),
                       [](const AllReduce* r) { return r != nullptr; });
  records_ = backend.traits().records_steps &&
             std::ranges::all_of(all_reduces_, [](const AllReduce* r) { return r->recordable(); });
}

bool StepRecorder::run(std::int64_t rows, const std::function<void()>& ops) {
  std::vector<SyncStats>& counted = counted_[rows];
  const bool first = counted.empty();
  if (first)
    for (const AllReduce* all_reduce : all_reduces_) counted.push_back(all_reduce->stats());
  const bool ran = backend_.run_recorded(rows, ops);
  for (std::size_t i = 0; i < all_reduces_.size(); i++) {
    SyncStats& stats = all_reduces_[i]->stats();
    if (first) {
      counted[i].sync_points = stats.sync_points - counted[i].sync_points;
      counted[i].bytes_sent = stats.bytes_sent - counted[i].bytes_sent;
    } else if (!ran) {
      stats.sync_points += counted[i].sync_points;
      stats.bytes_sent += counted[i].bytes_sent;
    }
  }
  return ran;
}

}  // namespace ptrt
