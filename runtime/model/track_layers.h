// The layers of some of a rank's tracks between two syncs: what tracks do without each other.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "model_io/config/model_config.h"
#include "model_io/shard/track_shard.h"
#include "runtime/sync/all_reduce.h"
#include "runtime/sync/fusion.h"
#include "runtime/sync/sync_schedule.h"

namespace ptrt {

// Activations of T tracks, sized for the most rows of a step. `h` is float32, as are the router's logits; the
// rest is of the backend's activation type.
struct TrackScratch {
  Tensor h;       // [T, rows, d]               each track's own stream inside a block
  Tensor normed;  // [T, rows, d]
  Tensor out;     // [T, rows, d]               of a sublayer
  Tensor q;       // [T, rows, heads · hd]
  Tensor k;       // [T, rows, kv_heads · hd]
  Tensor v;       // [T, rows, kv_heads · hd]
  Tensor mixed;   // [T, rows, heads · hd]      attention output before wo
  Tensor gate;    // [T, rows · k, ffn]         k = top_k in a mixture of experts, else 1
  Tensor up;      // [T, rows · k, ffn]
  Tensor router;  // [T, rows, experts]
  Tensor expert;  // [T, rows · top_k, d]

  TrackScratch track(std::int64_t t) const;
};

// What all tracks of a step share.
struct StepView {
  const StepRows* rows = nullptr;
  // What becomes of the step behind the keys and values of the last layer: all of it, or the rows
  // `kept` (ascending), which `live` then describes.
  const StepRows* live = nullptr;
  std::span<const std::int32_t> kept = {};  // empty: all
  Tensor x;                                 // [1, rows, d]   the stream that every track sees
  Tensor cos_sin;                           // [1, rows, hd]
  // Of the block to run: whether the fusion before it began it, and what the one behind it would have.
  bool begun = false;
  SyncEntry entry = {};
};

class TrackLayers {
 public:
  // All local tracks, or one with its part of pool and scratch. `tensor_parallel_all_reduce` adds the parts of a track that
  // several ranks share: two sums a layer, behind wo and w_down.
  TrackLayers(const ModelConfig& config, const SyncSchedule& schedule,
              const std::vector<LayerWeights>& layers, const std::vector<BlockWeights>& blocks,
              const KvPool& pool, const TrackScratch& scratch,
              AllReduce* tensor_parallel_all_reduce = nullptr);

  // Runs track block `index` on `backend`; appends keys and values. The tracks' outputs, normed where the
  // model does, are then in output(), or where step.entry says.
  void run_block(Backend& backend, std::int64_t index, const StepView& step);
  Tensor output() const { return now_.h; }  // [T, rows, d]
  // How block `index` begins, but for its sum; for a step that has run a block, and ends it with all rows.
  BlockBegin beginning(std::int64_t index, Tensor x) const;

 private:
  void begin_step(const StepView& step);
  void keys_and_values(const LayerWeights& layer, const AttentionShape& shape, std::int64_t index,
                       const StepView& step);
  void place_output();
  void keep_rows(std::span<const std::int32_t> kept);
  void attention(const LayerWeights& layer, const AttentionShape& shape, std::int64_t index,
                 const StepRows& rows);
  void ffn(const LayerWeights& layer, std::int64_t index);
  void moe(const LayerWeights& layer, Tensor input);
  void add_parts();
  void residual(const TrackWeights& output_norm, const TrackWeights& post_norm,
                const TrackWeights& next_norm);
  void end_block(const BlockWeights& block, const LayerWeights& last, const SyncEntry& entry);
  AttentionShape attention_shape(std::int64_t index) const;
  Tensor sublayer_input();

  const ModelConfig& config_;
  const SyncSchedule& schedule_;
  const std::vector<LayerWeights>& layers_;
  const std::vector<BlockWeights>& blocks_;
  KvPool pool_;
  TrackScratch scratch_, now_;  // now_: the views of the rows of this step
  AllReduce* tensor_parallel_all_reduce_;
  float eps_;
  Backend* backend_ = nullptr;  // of this call
};

}  // namespace ptrt
