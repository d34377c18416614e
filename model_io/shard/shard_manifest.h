// What one rank loads of a model, as a list: which tensors, which part of each, and where its
// weight goes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "model_io/config/model_config.h"
#include "model_io/config/tensor_names.h"
#include "model_io/file/tensor_reader.h"
#include "model_io/shard/track_shard.h"
#include "model_io/shard/track_split.h"

namespace ptrt {

// Which part of the model a rank loads.
struct ShardPlan {
  const ModelConfig& config;
  std::int64_t first_track, tracks;
  HeadRows head;
  TrackSplit split;
};

struct ShardEntry {
  TensorSpec whole, mine;               // as the model has it; as this rank has it
  std::optional<TensorPart> part = {};  // of `whole`; none where the rank has all of it
  Weight* slot = nullptr;               // where the loaded weight goes
  std::size_t group = 0;                // neighbours of the same group are loaded by one call of the backend
  std::size_t owner = 0;                // 0: shared; 1 + t: track t of the model
  std::size_t tensor = 0;               // its number among those of its owner
  bool again = false;                   // another entry is the same tensor
  StoredTensor stored = {};             // set from the file; random weights have a type alone

  // What the backend loads.
  WeightSpec weight() const { return mine.weight(stored.dtype, stored.widened); }
};

// In the order in which they are loaded. Sizes the layers and blocks of `shard`, at which the slots
// point.
std::vector<ShardEntry> make_manifest(const ShardPlan& plan, TrackShard& shard);

}  // namespace ptrt
