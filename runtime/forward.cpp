#include "runtime/forward.h"

#include <algorithm>
#include <cstring>

#include "kernels/error.h"

namespace ptrt {
namespace {

// The same memory, rows of another width.
Tensor reshaped(const Tensor& all, std::int64_t rows, std::int64_t width) {
  return {all.data, all.tracks, rows, width, all.track_stride, all.dtype};
}

}  // namespace

Forward::Forward(const ModelConfig& config, const TrackShard& shard, Backend& backend, Fusion& fusion,
                 VocabHead& head, const KvCache& cache, std::int64_t max_rows, std::int64_t max_logit_rows)
    : config_(config),
      shard_(shard),
      backend_(backend),
      fusion_(fusion),
      pool_(cache.pool()),
      schedule_(config),
      head_(head),
      max_logit_rows_(max_logit_rows),
      eps_(static_cast<float>(config.norm_eps)) {
  const std::int64_t tracks = shard.tracks, d = config.hidden_size;
  const std::int64_t q_width = config.heads * config.head_dim, kv_width = config.kv_heads * config.head_dim;
  const DType inner = backend.activation_type(), exact = DType::float32;
  x_all_ = make(1, max_rows, d, exact, "x");
  h_all_ = make(tracks, max_rows, d, exact, "h");
  normed_all_ = make(tracks, max_rows, d, inner, "normed");
  out_all_ = make(tracks, max_rows, d, inner, "sublayer output");
  q_all_ = make(tracks, max_rows, q_width, inner, "q");
  k_all_ = make(tracks, max_rows, kv_width, inner, "k");
  v_all_ = make(tracks, max_rows, kv_width, inner, "v");
  mixed_all_ = make(tracks, max_rows, q_width, inner, "attention output");
  cos_sin_all_ = make(1, max_rows, config.head_dim, exact, "rope angles");
  head_rows_ = make(1, max_logit_rows, d, exact, "rows for the head");
  head_in_ = inner == exact ? head_rows_ : make(1, max_logit_rows, d, inner, "head input");

  // One gate and one up buffer serve both kinds of FFN layer; their widths differ, so they are sized by
  // elements.
  const auto uses = [&](FfnKind kind) { return std::ranges::count(config.ffn_pattern, kind) > 0; };
  std::int64_t ffn_elements = uses(FfnKind::dense) ? config.ffn_size : 0;
  if (uses(FfnKind::moe)) {
    ffn_elements = std::max(ffn_elements, config.moe->top_k * config.moe->ffn_size);
    router_all_ = make(tracks, max_rows, config.moe->experts, exact, "router logits");
    expert_all_ = make(tracks, max_rows * config.moe->top_k, d, inner, "expert outputs");
  }
  gate_all_ = make(tracks, max_rows, ffn_elements, inner, "ffn gate");
  up_all_ = make(tracks, max_rows, ffn_elements, inner, "ffn up");
  places_.reserve(static_cast<std::size_t>(max_rows));
  kept_positions_.reserve(static_cast<std::size_t>(max_rows));
  kept_slots_.reserve(static_cast<std::size_t>(max_rows));
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
  const auto count = static_cast<std::int64_t>(tokens.size());
  PTRT_CHECK(count >= 1 && count <= x_all_.rows && rows.positions.size() == tokens.size());
  const auto view = [count](const Tensor& all) { return all.first_rows(count); };
  x_ = view(x_all_), h_ = view(h_all_), normed_ = view(normed_all_), out_ = view(out_all_);
  q_ = view(q_all_), k_ = view(k_all_), v_ = view(v_all_), mixed_ = view(mixed_all_),
  cos_sin_ = view(cos_sin_all_);

  places_.assign(wanted.begin(), wanted.end());

  StepRows live = rows;
  backend_.begin_step(tokens, rows);
  backend_.embed(shard_.embedding, tokens, x_);
  backend_.rope_angles(rows.positions, config_.rope_theta, cos_sin_);
  for (std::int64_t i = 0; i < config_.layers; i++) {
    const LayerWeights& layer = shard_.layers[static_cast<std::size_t>(i)];
    const BlockWeights& block = shard_.blocks[static_cast<std::size_t>(schedule_.block_of(i))];
    const bool syncs = schedule_.syncs_after(i);
    if (schedule_.starts_block(i)) begin_block(block, layer);
    const AttentionShape shape = attention_shape(i);
    keys_and_values(layer, shape, i, rows);
    if (i == config_.layers - 1) live = drop_unwanted(rows, wanted);
    attention(layer, shape, i, live);
    ffn(layer, i, syncs ? nullptr : &shard_.layers[static_cast<std::size_t>(i + 1)].attn_norm);
    if (syncs) end_block(block);
  }
}

void Forward::begin_block(const BlockWeights& block, const LayerWeights& first) {
  const Tensor x = x_.broadcast(h_.tracks);
  if (config_.fusion.dispatch_norm)
    backend_.rms_norm(block.dispatch_norm, eps_, x, h_);
  else
    backend_.copy(x, h_);
  if (config_.norm_placement.pre) backend_.rms_norm(first.attn_norm, eps_, h_, normed_);
}

void Forward::end_block(const BlockWeights& block) {
  if (config_.fusion.combine_norm) backend_.rms_norm(block.combine_norm, eps_, h_, h_);
  fusion_.fuse(x_, h_);
}

AttentionShape Forward::attention_shape(std::int64_t index) const {
  const AttentionKind kind = config_.attention_kind(index);
  return {config_.heads,    config_.kv_heads,
          config_.head_dim, is_local(kind) ? config_.attention_window : 0,
          has_rope(kind),   eps_};
}

void Forward::keys_and_values(const LayerWeights& layer, const AttentionShape& shape, std::int64_t index,
                              const StepRows& rows) {
  const Tensor input = sublayer_input();
  const LinearJob project[] = {{&layer.wq, input, q_}, {&layer.wk, input, k_}, {&layer.wv, input, v_}};
  backend_.linear(project);
  backend_.rope_append(shape, layer.q_norm, layer.k_norm, cos_sin_, q_, k_, v_, rows, index, pool_);
}

// From here on the step has only the wanted rows, or its last one where none is wanted, so that every step
// has the same fusions.
StepRows Forward::drop_unwanted(const StepRows& rows, std::span<const std::int32_t> wanted) {
  const auto last = static_cast<std::int32_t>(h_.rows - 1);
  if (wanted.empty()) wanted = {&last, 1};
  const auto count = static_cast<std::int64_t>(wanted.size());
  if (count == h_.rows || !backend_.takes_part_of_step()) return rows;
  for (Tensor* all : {&x_, &h_, &q_}) backend_.keep_rows(*all, wanted);
  for (Tensor* all : {&x_, &h_, &q_, &normed_, &out_, &mixed_}) *all = all->first_rows(count);
  kept_positions_.clear();
  kept_slots_.clear();
  for (std::size_t i = 0; i < wanted.size(); i++) {
    const auto row = static_cast<std::size_t>(wanted[i]);
    kept_positions_.push_back(rows.positions[row]);
    kept_slots_.push_back(rows.slots[row]);
    if (!places_.empty()) places_[i] = static_cast<std::int32_t>(i);
  }
  return {kept_positions_, kept_slots_, rows.page_table, rows.page_table_stride};
}

void Forward::attention(const LayerWeights& layer, const AttentionShape& shape, std::int64_t index,
                        const StepRows& rows) {
  backend_.attention(shape, q_, rows, index, pool_, mixed_);
  const LinearJob merge[] = {{&layer.wo, mixed_, out_}};
  backend_.linear(merge);
  residual(layer.attn_output_norm, layer.attn_post_norm, &layer.ffn_norm);
}

void Forward::ffn(const LayerWeights& layer, std::int64_t index, const TrackWeights* next_norm) {
  const Tensor input = sublayer_input();
  if (config_.ffn_kind(index) == FfnKind::moe) {
    moe(layer, input);
  } else {
    const Tensor gate = reshaped(gate_all_, h_.rows, config_.ffn_size);
    const Tensor up = reshaped(up_all_, h_.rows, config_.ffn_size);
    const LinearJob widen[] = {{&layer.w_gate, input, gate}, {&layer.w_up, input, up}};
    backend_.linear(widen);
    backend_.swiglu(gate, up);
    const LinearJob narrow[] = {{&layer.w_down, gate, out_}};
    backend_.linear(narrow);
  }
  residual(layer.ffn_output_norm, layer.ffn_post_norm, next_norm);
}

void Forward::moe(const LayerWeights& layer, Tensor input) {
  const MoeConfig& moe = *config_.moe;
  const std::int64_t chosen = h_.rows * moe.top_k;
  MoeJob job;
  job.shape = {moe.experts, moe.top_k, moe.ffn_size, static_cast<float>(moe.router_logit_cap.value_or(0))};
  job.router = &layer.router;
  job.gate = &layer.expert_gate;
  job.up = &layer.expert_up;
  job.down = &layer.expert_down;
  job.x = input;
  job.y = out_;
  job.router_logits = router_all_.first_rows(h_.rows);
  job.gate_out = reshaped(gate_all_, chosen, moe.ffn_size);
  job.up_out = reshaped(up_all_, chosen, moe.ffn_size);
  job.expert_out = expert_all_.first_rows(chosen);
  backend_.moe_ffn(job);
}

// h += out, normed where the model does; `next_norm` (null where a sync follows) is the pre-norm of the
// sublayer after this one, which goes with the sum in one pass.
void Forward::residual(const TrackWeights& output_norm, const TrackWeights& post_norm,
                       const TrackWeights* next_norm) {
  const bool pre = config_.norm_placement.pre && next_norm != nullptr;
  if (config_.norm_placement.output) backend_.rms_norm(output_norm, eps_, out_, out_);
  if (config_.norm_placement.post) {
    backend_.add_rms_norm(out_, h_, post_norm, eps_, h_);
    if (pre) backend_.rms_norm(*next_norm, eps_, h_, normed_);
  } else if (pre) {
    backend_.add_rms_norm(out_, h_, *next_norm, eps_, normed_);
  } else {
    backend_.add(out_, h_);
  }
}

// What the sublayer's products take; without a pre-norm the stream itself, in their type.
Tensor Forward::sublayer_input() {
  if (config_.norm_placement.pre) return normed_;
  if (h_.dtype == normed_.dtype) return h_;
  backend_.copy(h_, normed_);
  return normed_;
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
  return head_.logits(head_input(first, count));
}

void Forward::greedy(std::int64_t first, std::span<Sampled> out) {
  head_.greedy(head_input(first, std::ssize(out)), out);
}

}  // namespace ptrt
