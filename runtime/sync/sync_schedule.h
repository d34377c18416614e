// The layers after which the tracks' outputs are fused, and the track blocks between them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "model_io/config/model_config.h"

namespace ptrt {

class SyncSchedule {
 public:
  explicit SyncSchedule(const ModelConfig& config);

  struct Layers {
    std::int64_t begin = 0, end = 0;  // 0-based
  };
  std::int64_t blocks() const { return static_cast<std::int64_t>(ends_.size()); }
  // A block's layers: those after the previous sync layer, up to and including the next.
  Layers layers_of(std::int64_t block) const {
    const auto b = static_cast<std::size_t>(block);
    return {block == 0 ? 0 : ends_[b - 1], ends_[b]};
  }
  // Whether `layer`, 0-based, is a sync layer.
  bool ends_block(std::int64_t layer) const { return std::ranges::binary_search(ends_, layer + 1); }
  // Fusions between tracks in one forward pass: the number of sync layers, or 0 for a dense model.
  std::int64_t sync_points() const { return sync_points_; }

 private:
  std::vector<std::int64_t> ends_;  // of each block: one past its last layer
  std::int64_t sync_points_ = 0;
};

}  // namespace ptrt
