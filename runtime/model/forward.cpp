#include "runtime/model/forward.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "runtime/model/rope_frequencies.h"

namespace ptrt {
namespace {

// Each half reads all weights again, which a product of this many rows does not notice.
constexpr std::int64_t kRowsOfHalf = 32;
// The first half is whole tiles of the matrix products (6 rows, or fewer), so that a tile that is not
// full comes once, as without halves.
constexpr std::int64_t kRowsOfTiles = 24;

// The least rows of a half; an expert gets top_k of `experts` of them.
std::int64_t least_of_half(const ModelConfig& config) {
  return config.moe ? kRowsOfHalf * config.moe->experts / config.moe->top_k : kRowsOfHalf;
}

// Where the second half of a step begins.
std::int64_t middle_of(std::int64_t rows) {
  return (rows / 2 + kRowsOfTiles / 2) / kRowsOfTiles * kRowsOfTiles;
}

}  // namespace

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
      splits_track_(tensor_parallel != nullptr),
      halves_{StepPart(max_rows), StepPart(max_rows)},
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
  has_logits_ = false;
  backend_.set_step_inputs(tokens, rows);
  if (in_halves(std::ssize(tokens))) return run_halves(tokens, rows, wanted);
  logit_rows_.select(rows, wanted, backend_.traits().attends_to_row_subsets);
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
  const bool ran = recorder_.run(count, [&] {
    run_layers(padded_.tokens(), padded_.rows());
    head_.logits(head_input(0, count));
  });
  if (!ran) head_.count_replay(count);
}

void Forward::embed(std::span<const std::int32_t> tokens, const StepRows& rows) {
  const auto count = std::ssize(tokens);
  PTRT_CHECK(count <= activations_.x.rows);
  x_ = activations_.x.first_rows(count);
  backend_.embed(shard_.embedding, tokens, static_cast<float>(config_.embedding_scale), x_);
  backend_.rope_angles(rows.positions, rope_, activations_.cos_sin.first_rows(count));
  if (local_rope_)
    backend_.rope_angles(rows.positions, *local_rope_, activations_.local_cos_sin.first_rows(count));
}

// `first`: where `rows` begin in the step.
void Forward::bind_views(const StepRows& rows, const LogitRows& logit_rows, std::int64_t first) {
  const auto count = std::ssize(rows.positions);
  const StepView view{&rows, &logit_rows.active(), logit_rows.retained(),
                      rows_of(activations_.cos_sin, first, count),
                      rows_of(activations_.local_cos_sin, first, count)};
  all_tracks_.bind_views(view);
  for (TrackLayers& track : lanes_) track.bind_views(view);
}

BlockOutput Forward::run_block(std::int64_t block, const BlockInput& input, const LogitRows& logit_rows,
                               bool polls, Tensor& x) {
  const SyncSchedule::Layers layers = schedule_.layers_of(block);
  const std::int64_t rows_left = layers.end == config_.layers ? logit_rows.active_count() : x.rows;
  const BlockOutput output = fusion_.output(x, activations_.h.first_rows(rows_left));
  for_each_lane([&](TrackLayers& tracks, Backend& lane) {
    tracks.begin_block(lane, block, x, input);
    for (std::int64_t layer = layers.begin; layer < layers.end; layer++) {
      tracks.attention(lane, layer);
      if (polls) fusion_.poll();
      tracks.ffn(lane, layer);
      if (polls) fusion_.poll();
    }
    tracks.end_block(lane, block, output);
  });
  if (rows_left < x.rows) backend_.keep_rows(x, logit_rows.retained());
  x = x.first_rows(rows_left);
  return output;
}

void Forward::run_layers(std::span<const std::int32_t> tokens, const StepRows& rows) {
  embed(tokens, rows);
  bind_views(rows, logit_rows_, 0);
  BlockInput input;  // of the first block: x_ as it is
  for (std::int64_t block = 0; block < schedule_.blocks(); block++) {
    const BlockOutput output = run_block(block, input, logit_rows_, false, x_);
    input = fusion_.exchange(x_, output);            // the only communication between tracks
    if (!lanes_.empty()) fusion_.finish(input, x_);  // else each lane would add
  }
  fusion_.finish(input, x_);
}

// All ranks decide alike: by the number of rows, and by how all of them communicate. The sums within
// a split track would double in number.
bool Forward::in_halves(std::int64_t rows) const {
  const std::int64_t larger = std::max(middle_of(rows), rows - middle_of(rows));
  return !splits_track_ && rows >= 2 * least_of_half(config_) && fusion_.overlaps(larger);
}

// The halves take each block in turns, so the sum of one travels while the other computes. Rows see
// keys and values of rows before them alone, so the second half finds those of the first; as a row's
// bits do not depend on the rows beside it, they are those of run_layers().
void Forward::run_halves(std::span<const std::int32_t> tokens, const StepRows& rows,
                         std::span<const std::int32_t> wanted) {
  embed(tokens, rows);
  const auto count = std::ssize(tokens);
  const std::int64_t middle = middle_of(count);
  const bool drops = backend_.traits().attends_to_row_subsets;
  halves_[0].select(rows, 0, middle, wanted, drops);
  halves_[1].select(rows, middle, count - middle, wanted, drops);
  for (StepPart& half : halves_) {
    half.x = rows_of(x_, half.first(), half.count());
    half.input = {};
  }
  for (std::int64_t block = 0; block < schedule_.blocks(); block++)
    for (const int half : {0, 1}) run_half_block(block, half);
  for (StepPart& half : halves_) fusion_.finish(half.input, half.x);
  logit_rows_.select_halves(halves_[0].logit_rows(), halves_[1].logit_rows(), middle);
}

void Forward::run_half_block(std::int64_t block, int half) {
  StepPart& part = halves_[half];
  fusion_.finish(part.input, part.x);
  bind_views(part.rows(), part.logit_rows(), part.first());
  // Lanes may run on several threads, which must not communicate.
  const BlockOutput output = run_block(block, {}, part.logit_rows(), lanes_.empty(), part.x);
  part.input = fusion_.start_exchange(half, part.x, output);
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
