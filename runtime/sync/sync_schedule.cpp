#include "runtime/sync/sync_schedule.h"

#include "kernels/base/error.h"

namespace ptrt {

SyncSchedule::SyncSchedule(const ModelConfig& config)
    : ends_(config.sync_layers.begin(), config.sync_layers.end()),  // 1-based, so one past the last layer
      sync_points_(config.tracks > 1 ? config.blocks() : 0) {
  PTRT_CHECK(!ends_.empty() && ends_.front() >= 1 && ends_.back() == config.layers);
  for (std::size_t b = 1; b < ends_.size(); b++) PTRT_CHECK(ends_[b] > ends_[b - 1]);
}

}  // namespace ptrt
