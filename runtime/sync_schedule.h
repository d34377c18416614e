// Where the tracks meet: the layers after which the fusion runs, and the track blocks between them.
#pragma once

#include <cstdint>
#include <vector>

#include "model_io/model_config.h"

namespace ptrt {

class SyncSchedule {
 public:
  explicit SyncSchedule(const ModelConfig& config);

  // `layer` is 0-based; a block is the layers after the previous sync layer up to and including the next.
  bool starts_block(std::int64_t layer) const { return starts_[static_cast<std::size_t>(layer)]; }
  bool syncs_after(std::int64_t layer) const { return ends_[static_cast<std::size_t>(layer)]; }
  std::int64_t block_of(std::int64_t layer) const { return block_[static_cast<std::size_t>(layer)]; }
  // Fusions between tracks in one forward pass: the number of sync layers, or 0 for a dense model.
  std::int64_t sync_points() const { return sync_points_; }

 private:
  std::vector<bool> starts_, ends_;
  std::vector<std::int64_t> block_;
  std::int64_t sync_points_ = 0;
};

}  // namespace ptrt
