// The layers of some of a rank's tracks: all that tracks do without each other.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/backend.h"
#include "model_io/config/model_config.h"
#include "model_io/shard/track_shard.h"
#include "runtime/model/activations.h"
#include "runtime/sync/fusion.h"
#include "runtime/sync/sync_schedule.h"

namespace ptrt {

// What all tracks of a step share. What it refers to must stay valid during the step.
struct StepView {
  const StepRows* rows = nullptr;
  // The rows that stay active once the keys and values of the last layer are appended: all, or
  // `retained`.
  const StepRows* active = nullptr;
  std::span<const std::int32_t> retained = {};  // rows of the step, ascending; empty: all
  Tensor cos_sin, local_cos_sin;                // [1, rows, hd]
};

// One local track's layers and blocks alone.
TrackShard shard_of_track(const TrackShard& shard, std::int64_t track);

// The functions of a step are called in the order of the model, each with the lane that computes it
// (Backend::parallel_over_tracks(), or the backend itself).
class TrackLayers {
 public:
  // The tracks of `shard`, with their parts of pool and activations; the first of them is local
  // track `first_track`. `tensor_parallel` adds the parts of tracks that several ranks share, after
  // wo and after w_down; null where the rank has its tracks whole. The references must outlive the
  // object.
  TrackLayers(const ModelConfig& config, const SyncSchedule& schedule, const TrackShard& shard,
              const KvPool& pool, const Activations& activations, AllReduce* tensor_parallel,
              std::int64_t first_track = 0);

  // Before the first block of a step.
  void bind_views(const StepView& step);
  // x [1, rows, d] = the sum of `input`, if any; then every track's stream h = x, or its dispatch
  // norm, and the input of the first sublayer.
  void begin_block(Backend& lane, std::int64_t block, Tensor x, const BlockInput& input);
  // Appends keys and values. In the last layer, drops the rows that are not retained.
  void attention(Backend& lane, std::int64_t layer);
  void ffn(Backend& lane, std::int64_t layer);
  // These tracks of output.y = h, or its combine norm, minus output.minus.
  void end_block(Backend& lane, std::int64_t block, const BlockOutput& output);

 private:
  void place_output();
  void append_keys_and_values(Backend& lane, std::int64_t layer, const AttentionShape& shape);
  void drop_rows(Backend& lane);
  void moe(Backend& lane, const LayerWeights& layer, Tensor input);
  void add_parts();
  void residual(Backend& lane, const TrackWeights& output_norm, const TrackWeights& post_norm,
                const TrackWeights& next_norm);
  void norm_output(Backend& lane, const TrackWeights& output_norm);
  AttentionShape attention_shape(std::int64_t layer) const;
  Tensor sublayer_input(Backend& lane);
  const LayerWeights& weights(std::int64_t layer) const {
    return shard_.layers[static_cast<std::size_t>(layer)];
  }

  const ModelConfig& config_;
  const SyncSchedule& schedule_;
  const TrackShard& shard_;
  KvPool pool_;
  Activations activations_;
  AllReduce* tensor_parallel_;
  std::int64_t first_track_;
  float eps_;
  NormRule pre_rule_, output_rule_, post_rule_;
  StepView view_;     // of the current step
  Activations step_;  // the rows of the current step
  Tensor part_;       // this rank's part of step_.out; without tensor parallelism step_.out itself
};

}  // namespace ptrt
