#include "runtime/model/forward.h"

#include "kernels/base/error.h"
#include "runtime/model/rope_frequencies.h"

namespace ptrt {

Forward::Forward(const ModelConfig& config, const TrackShard& shard, Backend& backend, Fusion& fusion,
                 AllReduce* tensor_parallel, VocabHead& head, const KvCache& cache, std::int64_t max_rows,
                 std::int64_t max_logit_rows)
    : config_(config),
      shard_(shard),
      backend_(backend),
      fusion_(fusion),
      schedule_(config),
      head_(head),
      recorder_(backend, {&fusion.all_reduce(), tensor_parallel}),
      memory_(backend),
      activations_(make_activations(memory_, config, shard.tracks, max_rows, max_logit_rows,
                                    backend.traits().activation_dtype, tensor_parallel != nullptr)),
      rope_(rope_frequencies(config)),
      all_tracks_(config, schedule_, shard, cache.pool(), activations_, tensor_parallel),
      logit_rows_(max_rows),
      padded_(max_rows) {
  if (config.has_local_rope_theta()) local_rope_ = local_rope_frequencies(config);
  // With tensor parallelism ranks communicate within a track, which they must do in one order.
  if (tensor_parallel != nullptr || !backend.traits().prefers_track_parallel(shard.tracks)) return;
  for (std::int64_t t = 0; t < shard.tracks; t++) track_shards_.push_back(shard_of_track(shard, t));
  for (std::int64_t t = 0; t < shard.tracks; t++)
    lanes_.emplace_back(config, schedule_, track_shards_[static_cast<std::size_t>(t)],
                        cache.pool().from_track(t), activations_.track(t), nullptr, t);
}

void Forward::run(std::span<const std::int32_t> tokens, const StepRows& rows,
                  std::span<const std::int32_t> wanted) {
  PTRT_CHECK(!tokens.empty() && rows.positions.size() == tokens.size());
  logit_rows_.select(rows, wanted, backend_.traits().attends_to_row_subsets);
  has_logits_ = false;
  backend_.set_step_inputs(tokens, rows);
  run_layers(tokens, rows);
}

void Forward::run_recorded(std::span<const std::int32_t> tokens, const StepRows& rows) {
  PTRT_CHECK(records() && !tokens.empty() && rows.positions.size() == tokens.size());
  padded_.assign(tokens, rows);
  logit_rows_.select_all(padded_.rows());
  has_logits_ = true;
  backend_.set_step_inputs(padded_.tokens(), padded_.rows());
  const std::int64_t count = logit_rows_.count();
  PTRT_CHECK(count <= max_logit_rows());
  recorder_.run(count, [&] {
    run_layers(padded_.tokens(), padded_.rows());
    head_.logits(head_input(0, count));
  });
}

void Forward::run_layers(std::span<const std::int32_t> tokens, const StepRows& rows) {
  const auto count = std::ssize(tokens);
  PTRT_CHECK(count <= activations_.x.rows);
  x_ = activations_.x.first_rows(count);
  const Tensor cos_sin = activations_.cos_sin.first_rows(count);
  const Tensor local_cos_sin = activations_.local_cos_sin.first_rows(count);
  backend_.embed(shard_.embedding, tokens, static_cast<float>(config_.embedding_scale), x_);
  backend_.rope_angles(rows.positions, rope_, cos_sin);
  if (local_rope_) backend_.rope_angles(rows.positions, *local_rope_, local_cos_sin);
  const StepView step{&rows, &logit_rows_.active(), logit_rows_.retained(), cos_sin, local_cos_sin};
  all_tracks_.bind_views(step);
  for (TrackLayers& track : lanes_) track.bind_views(step);

  BlockInput input;  // of the first block: x_ as it is
  for (std::int64_t block = 0; block < schedule_.blocks(); block++) {
    const SyncSchedule::Layers layers = schedule_.layers_of(block);
    const std::int64_t rows_left = layers.end == config_.layers ? logit_rows_.active_count() : count;
    const BlockOutput output = fusion_.output(x_, activations_.h.first_rows(rows_left));
    for_each_lane([&](TrackLayers& tracks, Backend& lane) {
      tracks.begin_block(lane, block, x_, input);
      for (std::int64_t layer = layers.begin; layer < layers.end; layer++) {
        tracks.attention(lane, layer);
        tracks.ffn(lane, layer);
      }
      tracks.end_block(lane, block, output);
    });
    if (rows_left < count) backend_.keep_rows(x_, logit_rows_.retained());
    x_ = x_.first_rows(rows_left);
    input = fusion_.exchange(x_, output);            // the only communication between tracks
    if (!lanes_.empty()) fusion_.finish(input, x_);  // else each lane would add
  }
  fusion_.finish(input, x_);
}

Tensor Forward::head_input(std::int64_t first, std::int64_t count) {
  PTRT_CHECK(count <= max_logit_rows());
  const Tensor picked = activations_.head_rows.first_rows(count);
  const Tensor input = activations_.head_in.first_rows(count);
  backend_.gather_rows(x_, logit_rows_.places(first, count), picked);
  backend_.rms_norm(shard_.final_norm, static_cast<float>(config_.norm_eps), picked, input);
  return input;
}

Tensor Forward::logits(std::int64_t first, std::int64_t count) {
  if (!has_logits_) return head_.logits(head_input(first, count));
  const Tensor all = head_.logits_of_last_call(logit_rows_.count());
  return {all.row(0, first), 1, count, all.width, all.track_stride};
}

void Forward::greedy(std::int64_t first, std::span<Sampled> out) {
  PTRT_CHECK(!has_logits_);
  head_.greedy(head_input(first, std::ssize(out)), out);
}

}  // namespace ptrt
