#include "runtime/model/forward.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

std::vector<LayerWeights> layers_of_track(const TrackShard& shard, std::size_t track) {
  std::vector<LayerWeights> layers;
  for (const LayerWeights& layer : shard.layers) layers.push_back(of_track(layer, track));
  return layers;
}

std::vector<BlockWeights> blocks_of_track(const TrackShard& shard, std::size_t track) {
  std::vector<BlockWeights> blocks;
  for (const BlockWeights& block : shard.blocks) blocks.push_back(of_track(block, track));
  return blocks;
}

}  // namespace

Forward::Forward(const ModelConfig& config, const TrackShard& shard, Backend& backend, Fusion& fusion,
                 AllReduce* tensor_parallel_all_reduce, VocabHead& head, const KvCache& cache,
                 std::int64_t max_rows, std::int64_t max_logit_rows)
    : config_(config),
      shard_(shard),
      backend_(backend),
      fusion_(fusion),
      schedule_(config),
      head_(head),
      recorder_(backend, {&fusion.all_reduce(), tensor_parallel_all_reduce}),
      max_logit_rows_(max_logit_rows),
      eps_(static_cast<float>(config.norm_eps)),
      scratch_(make_scratch(max_rows, tensor_parallel_all_reduce != nullptr)),
      together_(config, schedule_, shard.layers, shard.blocks, cache.pool(), scratch_,
                tensor_parallel_all_reduce) {
  const DType inner = backend.traits().activation_dtype, exact = DType::float32;
  x_all_ = make(1, max_rows, config.hidden_size, exact, "x");
  cos_sin_all_ = make(1, max_rows, config.head_dim, exact, "rope angles");
  head_rows_ = make(1, max_logit_rows, config.hidden_size, exact, "rows for the head");
  head_in_ = inner == exact ? head_rows_ : make(1, max_logit_rows, config.hidden_size, inner, "head input");
  for (std::vector<std::int32_t>* list : {&places_, &kept_, &kept_positions_, &kept_slots_, &filled_tokens_,
                                          &filled_positions_, &filled_slots_})
    list->reserve(static_cast<std::size_t>(max_rows));
  // Inside a split track ranks meet, which they must do in one order.
  if (tensor_parallel_all_reduce != nullptr || !backend.traits().prefers_track_parallel(shard.tracks)) return;
  for (std::int64_t t = 0; t < shard.tracks; t++) {
    layers_of_track_.push_back(layers_of_track(shard, static_cast<std::size_t>(t)));
    blocks_of_track_.push_back(blocks_of_track(shard, static_cast<std::size_t>(t)));
  }
  for (std::int64_t t = 0; t < shard.tracks; t++) {
    const auto place = static_cast<std::size_t>(t);
    apart_.emplace_back(config, schedule_, layers_of_track_[place], blocks_of_track_[place],
                        cache.pool().from_track(t), scratch_.track(t));
  }
}

TrackScratch Forward::make_scratch(std::int64_t rows, bool split) {
  const std::int64_t tracks = shard_.tracks, d = config_.hidden_size;
  const std::int64_t q_width = config_.heads * config_.head_dim;
  const std::int64_t kv_width = config_.kv_heads * config_.head_dim;
  const DType inner = backend_.traits().activation_dtype, exact = DType::float32;
  TrackScratch scratch;
  scratch.h = make(tracks, rows, d, exact, "h");
  scratch.normed = make(tracks, rows, d, inner, "normed");
  scratch.out = make(tracks, rows, d, split ? exact : inner, "sublayer output");
  scratch.q = make(tracks, rows, q_width, inner, "q");
  scratch.k = make(tracks, rows, kv_width, inner, "k");
  scratch.v = make(tracks, rows, kv_width, inner, "v");
  scratch.mixed = make(tracks, rows, q_width, inner, "attention output");

  // One gate and one up buffer serve both kinds of FFN layer; their widths differ, so they are sized by
  // elements.
  const auto uses = [&](FfnKind kind) { return std::ranges::count(config_.ffn_pattern, kind) > 0; };
  std::int64_t ffn_elements = uses(FfnKind::dense) ? config_.ffn_size : 0;
  if (uses(FfnKind::moe)) {
    const MoeConfig& moe = *config_.moe;
    ffn_elements = std::max(ffn_elements, moe.top_k * moe.ffn_size);
    scratch.router = make(tracks, rows, moe.experts, exact, "router logits");
    scratch.expert = make(tracks, rows * moe.top_k, d, inner, "expert outputs");
  }
  scratch.gate = make(tracks, rows, ffn_elements, inner, "ffn gate");
  scratch.up = make(tracks, rows, ffn_elements, inner, "ffn up");
  return scratch;
}

Tensor Forward::make(std::int64_t tracks, std::int64_t rows, std::int64_t width, DType dtype,
                     const char* what) {
  const std::size_t bytes = static_cast<std::size_t>(tracks * rows * width) * size_of(dtype);
  memory_.push_back(backend_.allocate(bytes, what));
  scratch_bytes_ += static_cast<std::int64_t>(bytes);
  return {memory_.back().get(), tracks, rows, width, rows * width, dtype};
}

void Forward::run(std::span<const std::int32_t> tokens, const StepRows& rows,
                  std::span<const std::int32_t> wanted) {
  PTRT_CHECK(!tokens.empty() && rows.positions.size() == tokens.size());
  const StepRows live = live_rows(rows, wanted);
  has_logits_ = false;
  backend_.set_step_inputs(tokens, rows);
  run_layers(tokens, rows, live);
}

void Forward::run_recorded(std::span<const std::int32_t> tokens, const StepRows& rows) {
  PTRT_CHECK(records() && !tokens.empty() && rows.positions.size() == tokens.size());
  fill_up(tokens, rows);
  const StepRows filled{filled_positions_, filled_slots_, rows.page_table, rows.page_table_stride};
  const auto count = std::ssize(filled_tokens_);
  PTRT_CHECK(count <= max_logit_rows_);
  places_.resize(filled_tokens_.size());
  for (std::size_t i = 0; i < places_.size(); i++) places_[i] = static_cast<std::int32_t>(i);
  kept_.clear();
  has_logits_ = true;
  backend_.set_step_inputs(filled_tokens_, filled);
  recorder_.run(count, [&] {
    run_layers(filled_tokens_, filled, filled);
    head_.logits(head_input(0, count));
  });
}

// The rows that fill a step up read and write the spare page alone, each a token of its own: their positions
// fall, so that they are no run of tokens. Nobody asks for their logits.
void Forward::fill_up(std::span<const std::int32_t> tokens, const StepRows& rows) {
  filled_tokens_.assign(tokens.begin(), tokens.end());
  filled_positions_.assign(rows.positions.begin(), rows.positions.end());
  filled_slots_.assign(rows.slots.begin(), rows.slots.end());
  const std::int64_t slots = std::ssize(rows.page_table) / rows.page_table_stride;
  const std::int64_t missing = recorded_rows(std::ssize(tokens), slots - 1) - std::ssize(tokens);
  PTRT_CHECK(rows.spare_slot >= 0 && missing >= 0 && missing <= kPageTokens);
  for (std::int64_t left = missing; left > 0; left--) {
    filled_tokens_.push_back(0);
    filled_positions_.push_back(static_cast<std::int32_t>(left - 1));
    filled_slots_.push_back(rows.spare_slot);
  }
}

void Forward::run_layers(std::span<const std::int32_t> tokens, const StepRows& rows, const StepRows& live) {
  const auto count = std::ssize(tokens);
  PTRT_CHECK(count <= x_all_.rows);
  x_ = x_all_.first_rows(count);
  cos_sin_ = cos_sin_all_.first_rows(count);
  backend_.embed(shard_.embedding, tokens, x_);
  backend_.rope_angles(rows.positions, config_.rope_theta, cos_sin_);
  StepView step{&rows, &live, kept_, x_, cos_sin_};
  for (std::int64_t block = 0; block < schedule_.blocks(); block++) {
    const bool last = block + 1 == schedule_.blocks();
    // Passes that go with the sync take all tracks and all rows.
    const bool whole = apart_.empty() && (!last || kept_.empty());
    step.entry = whole ? fusion_.entry(x_) : SyncEntry{};
    run_block(block, step);
    if (last && !kept_.empty()) {
      backend_.keep_rows(x_, kept_);
      x_ = x_.first_rows(std::ssize(kept_));
    }
    const Tensor y = step.entry.y.data == nullptr ? scratch_.h.first_rows(x_.rows) : step.entry.y;
    const BlockBegin next = last || !whole ? BlockBegin{} : together_.beginning(block + 1, x_);
    step.begun = fusion_.fuse(x_, y, step.entry, last || !whole ? nullptr : &next);
  }
}

// The tracks do not meet inside a block: where the backend can, each runs through it on one thread.
void Forward::run_block(std::int64_t index, const StepView& step) {
  if (apart_.empty()) return together_.run_block(backend_, index, step);
  backend_.parallel_over_tracks(std::ssize(apart_), [&](std::int64_t track, Backend& lane) {
    apart_[static_cast<std::size_t>(track)].run_block(lane, index, step);
  });
}

// What is left of the step behind the keys and values of the last layer: the wanted rows, or its last one
// where none is wanted, so that every step has the same fusions.
StepRows Forward::live_rows(const StepRows& rows, std::span<const std::int32_t> wanted) {
  places_.assign(wanted.begin(), wanted.end());
  kept_.clear();
  const auto last = static_cast<std::int32_t>(rows.positions.size()) - 1;
  if (wanted.empty()) wanted = {&last, 1};
  if (wanted.size() == rows.positions.size() || !backend_.traits().attends_to_row_subsets) return rows;
  kept_.assign(wanted.begin(), wanted.end());
  kept_positions_.clear();
  kept_slots_.clear();
  for (const std::int32_t row : kept_) {
    kept_positions_.push_back(rows.positions[static_cast<std::size_t>(row)]);
    kept_slots_.push_back(rows.slots[static_cast<std::size_t>(row)]);
  }
  for (std::size_t i = 0; i < places_.size(); i++) places_[i] = static_cast<std::int32_t>(i);
  return {kept_positions_, kept_slots_, rows.page_table, rows.page_table_stride};
}

Tensor Forward::head_input(std::int64_t first, std::int64_t count) {
  PTRT_CHECK(count >= 1 && count <= max_logit_rows_ && first + count <= std::ssize(places_));
  const auto rows = std::span<const std::int32_t>(places_).subspan(static_cast<std::size_t>(first),
                                                                   static_cast<std::size_t>(count));
  const Tensor picked = head_rows_.first_rows(count), input = head_in_.first_rows(count);
  backend_.gather_rows(x_, rows, picked);
  backend_.rms_norm(shard_.final_norm, eps_, picked, input);
  return input;
}

Tensor Forward::logits(std::int64_t first, std::int64_t count) {
  if (!has_logits_) return head_.logits(head_input(first, count));
  const Tensor all = head_.logits_of_last_call(std::ssize(places_));
  return {all.row(0, first), 1, count, all.width, all.track_stride};
}

void Forward::greedy(std::int64_t first, std::span<Sampled> out) {
  PTRT_CHECK(!has_logits_);
  head_.greedy(head_input(first, std::ssize(out)), out);
}

}  // namespace ptrt
