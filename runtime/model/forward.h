// The forward pass of one rank: its tracks over the rows of one step, written once for every backend.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "model_io/config/model_config.h"
#include "model_io/shard/track_shard.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/step_recorder.h"
#include "runtime/model/track_layers.h"
#include "runtime/model/vocab_head.h"
#include "runtime/sync/fusion.h"
#include "runtime/sync/sync_schedule.h"

namespace ptrt {

class Forward {
 public:
  // max_rows: rows of a step; max_logit_rows: rows that logits() takes at once. All scratch is sized here.
  // `config`: what this rank computes; `tensor_parallel_all_reduce` adds the parts of a track, null where the rank has it
  // whole.
  Forward(const ModelConfig& config, const TrackShard& shard, Backend& backend, Fusion& fusion,
          AllReduce* tensor_parallel_all_reduce, VocabHead& head, const KvCache& cache, std::int64_t max_rows,
          std::int64_t max_logit_rows);

  // Runs all layers over the rows: tokens[r] at rows.positions[r] of its sequence; appends their keys and
  // values. `wanted` are the rows, ascending, that logits() will be asked for: in the last layer nothing else
  // is worked out behind the keys and values.
  void run(std::span<const std::int32_t> tokens, const StepRows& rows, std::span<const std::int32_t> wanted);
  // The same for rows that are all wanted and all of different sequences, up to logits(); where records(), as
  // a step that the backend may record. Such a step is filled up with rows of rows.spare_slot.
  void run_recorded(std::span<const std::int32_t> tokens, const StepRows& rows);
  bool has_logits() const { return has_logits_; }  // of the last run: it was recorded
  bool records() const { return recorder_.records() && !head_.split(); }
  // Logits [1, count, vocab] of wanted[first …] of the last run; valid until the next call.
  Tensor logits(std::int64_t first, std::int64_t count);
  // The likeliest token of wanted[first …] of the last run(), as many as `out` has.
  void greedy(std::int64_t first, std::span<Sampled> out);

  std::int64_t max_logit_rows() const { return max_logit_rows_; }
  const SyncSchedule& schedule() const { return schedule_; }
  std::int64_t scratch_bytes() const { return scratch_bytes_; }

 private:
  Tensor make(std::int64_t tracks, std::int64_t rows, std::int64_t width, DType dtype, const char* what);
  TrackScratch make_scratch(std::int64_t rows, bool split);
  Tensor head_input(std::int64_t first, std::int64_t count);
  StepRows live_rows(const StepRows& rows, std::span<const std::int32_t> wanted);
  void run_layers(std::span<const std::int32_t> tokens, const StepRows& rows, const StepRows& live);
  void fill_up(std::span<const std::int32_t> tokens, const StepRows& rows);
  void run_block(std::int64_t index, const StepView& step);

  const ModelConfig& config_;
  const TrackShard& shard_;
  Backend& backend_;
  Fusion& fusion_;
  SyncSchedule schedule_;
  VocabHead& head_;
  StepRecorder recorder_;
  std::int64_t max_logit_rows_;
  float eps_;
  std::vector<std::shared_ptr<std::byte[]>> memory_;
  std::int64_t scratch_bytes_ = 0;

  TrackScratch scratch_;
  TrackLayers together_;  // all local tracks
  // Each local track by itself, for backends that run tracks apart.
  std::vector<std::vector<LayerWeights>> layers_of_track_;
  std::vector<std::vector<BlockWeights>> blocks_of_track_;
  std::vector<TrackLayers> apart_;

  // Scratch sized for max_rows, and the views of the rows of this step (same names, no "_all"), float32.
  Tensor x_all_;        // [1, rows, d]               the stream that every track sees
  Tensor cos_sin_all_;  // [1, rows, hd]
  Tensor head_rows_;    // [1, max_logit_rows, d]     of x
  Tensor head_in_;      // [1, max_logit_rows, d]     normed; the same memory where the types are equal
  Tensor x_, cos_sin_;
  // Of the last run: where the wanted rows are in x_, and, where the others were dropped, which were kept and
  // what they were.
  std::vector<std::int32_t> places_, kept_, kept_positions_, kept_slots_;
  // Of a recorded step: its rows and those that fill it up; whether the last run was one, its logits done.
  std::vector<std::int32_t> filled_tokens_, filled_positions_, filled_slots_;
  bool has_logits_ = false;
};

}  // namespace ptrt
