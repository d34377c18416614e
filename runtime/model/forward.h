// The forward pass of one rank: its tracks over the rows of one step, written once for every
// backend.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "model_io/config/model_config.h"
#include "model_io/shard/track_shard.h"
#include "runtime/model/activations.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/logit_rows.h"
#include "runtime/model/padded_batch.h"
#include "runtime/model/step_part.h"
#include "runtime/model/step_recorder.h"
#include "runtime/model/track_layers.h"
#include "runtime/model/vocab_head.h"
#include "runtime/sync/fusion.h"
#include "runtime/sync/sync_schedule.h"

namespace ptrt {

class Forward {
 public:
  // max_rows: rows of a step; max_logit_rows: rows that logits() takes at once. All activations are
  // allocated here. `config`: what this rank computes; `tensor_parallel` adds the parts of a track
  // that several ranks share, null where the rank has its tracks whole. The references must outlive
  // the object.
  Forward(const ModelConfig& config, const TrackShard& shard, Backend& backend, Fusion& fusion,
          AllReduce* tensor_parallel, VocabHead& head, const KvCache& cache, std::int64_t max_rows,
          std::int64_t max_logit_rows);

  // Runs all layers over the rows: tokens[r] at rows.positions[r] of its sequence; appends their
  // keys and values. `wanted`: the rows, ascending, that logits() will be asked for. In the last
  // layer, once K and V are appended, only these rows are computed.
  void run(std::span<const std::int32_t> tokens, const StepRows& rows, std::span<const std::int32_t> wanted);
  // The same for rows that are all wanted, of StepRows::decodes, logits included, as a step that the
  // backend may record; where records(). Such a step is padded with rows of rows.spare_slot.
  void run_recorded(std::span<const std::int32_t> tokens, const StepRows& rows);
  // Whether the last run was run_recorded(), which computed the logits too.
  bool has_logits() const { return has_logits_; }
  bool records() const { return recorder_.records() && head_.recordable(); }
  // From now on wanted[i] is what wanted[order[i]] was, a permutation. Not after run_recorded().
  void reorder_wanted(std::span<const std::int32_t> order) { logit_rows_.reorder(order); }
  // Logits [1, count, vocab] of wanted[first, first + count) of the last run; valid until the next
  // call.
  Tensor logits(std::int64_t first, std::int64_t count);
  // The likeliest tokens of wanted[first, first + out.size()) of the last run().
  void greedy(std::int64_t first, std::span<Sampled> out);

  std::int64_t max_logit_rows() const { return activations_.head_rows.rows; }
  const SyncSchedule& schedule() const { return schedule_; }
  std::int64_t scratch_bytes() const { return memory_.bytes(); }

 private:
  // In two halves, where the sums of one can travel while the other computes.
  bool in_halves(std::int64_t rows) const;
  void embed(std::span<const std::int32_t> tokens, const StepRows& rows);
  void run_layers(std::span<const std::int32_t> tokens, const StepRows& rows);
  void run_halves(std::span<const std::int32_t> tokens, const StepRows& rows,
                  std::span<const std::int32_t> wanted);
  void bind_views(const StepRows& rows, const LogitRows& logit_rows, std::int64_t first);
  // Computes one block; x drops the rows that the last block drops.
  BlockOutput run_block(std::int64_t block, const BlockInput& input, const LogitRows& logit_rows, bool polls,
                        Tensor& x);
  void run_half_block(std::int64_t block, int half);
  // body(tracks, lane) for all local tracks at once, or for each of them in parallel: inside a
  // block tracks do not communicate.
  template <typename Body>
  void for_each_lane(const Body& body) {
    if (lanes_.empty()) return body(all_tracks_, backend_);
    backend_.parallel_over_tracks(std::ssize(lanes_), [&](std::int64_t track, Backend& lane) {
      body(lanes_[static_cast<std::size_t>(track)], lane);
    });
  }
  Tensor head_input(std::int64_t first, std::int64_t count);

  const ModelConfig& config_;
  const TrackShard& shard_;
  Backend& backend_;
  Fusion& fusion_;
  SyncSchedule schedule_;
  VocabHead& head_;
  StepRecorder recorder_;
  TensorMemory memory_;
  Activations activations_;
  RopeFrequencies rope_;
  std::optional<RopeFrequencies> local_rope_;  // where local layers have their own
  TrackLayers all_tracks_;
  // Each local track by itself, for backends that run tracks in parallel; else empty.
  std::vector<TrackShard> track_shards_;
  std::vector<TrackLayers> lanes_;

  Tensor x_;              // the stream of the current step; after run(), of its active rows
  LogitRows logit_rows_;  // of the last run
  bool splits_track_;     // this rank's tracks are shared with others
  StepPart halves_[2];    // of the last run, where it ran in halves
  PaddedBatch padded_;    // of the last run_recorded()
  bool has_logits_ = false;
};

}  // namespace ptrt
