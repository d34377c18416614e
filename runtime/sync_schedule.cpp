#include "runtime/sync_schedule.h"

#include "kernels/error.h"

namespace ptrt {

SyncSchedule::SyncSchedule(const ModelConfig& config) {
  const auto layers = static_cast<std::size_t>(config.layers);
  starts_.assign(layers, false);
  ends_.assign(layers, false);
  block_.assign(layers, 0);
  std::size_t first = 0;
  for (std::size_t block = 0; block < config.sync_layers.size(); block++) {
    const auto end =
        static_cast<std::size_t>(config.sync_layers[block]);  // 1-based, so one past the last layer
    PTRT_CHECK(end > first && end <= layers);
    starts_[first] = true;
    ends_[end - 1] = true;
    for (std::size_t layer = first; layer < end; layer++) block_[layer] = static_cast<std::int64_t>(block);
    first = end;
  }
  PTRT_CHECK(first == layers);
  sync_points_ = config.tracks > 1 ? config.blocks() : 0;
}

}  // namespace ptrt
