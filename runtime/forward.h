// The forward pass of one rank: its tracks over the rows of one step, written once for every backend.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "model_io/model_config.h"
#include "model_io/track_shard.h"
#include "runtime/fusion.h"
#include "runtime/kv_cache.h"
#include "runtime/sync_schedule.h"
#include "runtime/vocab_head.h"

namespace ptrt {

class Forward {
 public:
  // max_rows: rows of a step; max_logit_rows: rows that logits() takes at once. All scratch is sized here.
  Forward(const ModelConfig& config, const TrackShard& shard, Backend& backend, Fusion& fusion,
          VocabHead& head, const KvCache& cache, std::int64_t max_rows, std::int64_t max_logit_rows);

  // Runs all layers over the rows: tokens[r] at rows.positions[r] of its sequence; appends their keys and
  // values. `wanted` are the rows, ascending, that logits() will be asked for: in the last layer nothing else
  // is worked out behind the keys and values.
  void run(std::span<const std::int32_t> tokens, const StepRows& rows, std::span<const std::int32_t> wanted);
  // Logits [1, count, vocab] of wanted[first …] of the last run(); valid until the next call.
  Tensor logits(std::int64_t first, std::int64_t count);
  // The likeliest token of wanted[first …], as many as `out` has.
  void greedy(std::int64_t first, std::span<Sampled> out);

  std::int64_t max_logit_rows() const { return max_logit_rows_; }
  const SyncSchedule& schedule() const { return schedule_; }
  std::int64_t scratch_bytes() const { return scratch_bytes_; }

 private:
  Tensor make(std::int64_t tracks, std::int64_t rows, std::int64_t width, DType dtype, const char* what);
  void begin_block(const BlockWeights& block, const LayerWeights& first);
  void keys_and_values(const LayerWeights& layer, const AttentionShape& shape, std::int64_t index,
                       const StepRows& rows);
  void attention(const LayerWeights& layer, const AttentionShape& shape, std::int64_t index,
                 const StepRows& rows);
  AttentionShape attention_shape(std::int64_t index) const;
  Tensor head_input(std::int64_t first, std::int64_t count);
  StepRows drop_unwanted(const StepRows& rows, std::span<const std::int32_t> wanted);
  void ffn(const LayerWeights& layer, std::int64_t index, const TrackWeights* next_norm);
  void moe(const LayerWeights& layer, Tensor input);
  void end_block(const BlockWeights& block);
  void residual(const TrackWeights& output_norm, const TrackWeights& post_norm,
                const TrackWeights* next_norm);
  Tensor sublayer_input();

  const ModelConfig& config_;
  const TrackShard& shard_;
  Backend& backend_;
  Fusion& fusion_;
  const KvPool& pool_;
  SyncSchedule schedule_;
  VocabHead& head_;
  std::int64_t max_logit_rows_;
  float eps_;
  std::vector<std::shared_ptr<std::byte[]>> memory_;
  std::int64_t scratch_bytes_ = 0;

  // Scratch sized for max_rows, T = local tracks, and the views of the rows of this step (same names, no
  // "_all"). x, h, router logits, angles and logits are float32, the rest of the backend's activation type.
  Tensor x_all_;        // [1, rows, d]               the stream that every track sees
  Tensor h_all_;        // [T, rows, d]               each track's own stream inside a block
  Tensor normed_all_;   // [T, rows, d]
  Tensor out_all_;      // [T, rows, d]               of a sublayer
  Tensor q_all_;        // [T, rows, heads · hd]
  Tensor k_all_;        // [T, rows, kv_heads · hd]
  Tensor v_all_;        // [T, rows, kv_heads · hd]
  Tensor mixed_all_;    // [T, rows, heads · hd]      attention output before wo
  Tensor gate_all_;     // [T, rows · k, ffn]         k = top_k in a mixture of experts, else 1
  Tensor up_all_;       // [T, rows · k, ffn]
  Tensor router_all_;   // [T, rows, experts]
  Tensor expert_all_;   // [T, rows · top_k, d]
  Tensor cos_sin_all_;  // [1, rows, hd]
  Tensor head_rows_;    // [1, max_logit_rows, d]     of x
  Tensor head_in_;      // [1, max_logit_rows, d]     normed; the same memory where the types are equal
  // Of the last run: where the wanted rows are in x_, and, where the others were dropped, what the kept ones
  // were.
  std::vector<std::int32_t> places_, kept_positions_, kept_slots_;
  Tensor x_, h_, normed_, out_, q_, k_, v_, mixed_, cos_sin_;
};

}  // namespace ptrt
