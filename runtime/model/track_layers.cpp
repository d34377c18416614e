#include "runtime/model/track_layers.h"

#include "kernels/base/error.h"

namespace ptrt {
namespace {

// The same memory, rows of another width.
Tensor reshaped(const Tensor& all, std::int64_t rows, std::int64_t width) {
  return {all.data, all.tracks, rows, width, all.track_stride, all.dtype};
}

// The same memory without a gap between the tracks' rows: one message takes it all.
Tensor one_run(Tensor x) {
  x.track_stride = x.rows * x.width;
  return x;
}

}  // namespace

TrackScratch TrackScratch::track(std::int64_t t) const {
  return {h.track(t),     normed.track(t), out.track(t), q.track(t),      k.track(t),     v.track(t),
          mixed.track(t), gate.track(t),   up.track(t),  router.track(t), expert.track(t)};
}

TrackLayers::TrackLayers(const ModelConfig& config, const SyncSchedule& schedule,
                         const std::vector<LayerWeights>& layers, const std::vector<BlockWeights>& blocks,
                         const KvPool& pool, const TrackScratch& scratch,
                         AllReduce* tensor_parallel_all_reduce)
    : config_(config),
      schedule_(schedule),
      layers_(layers),
      blocks_(blocks),
      pool_(pool),
      scratch_(scratch),
      tensor_parallel_all_reduce_(tensor_parallel_all_reduce),
      eps_(static_cast<float>(config.norm_eps)) {}

void TrackLayers::run_block(Backend& backend, std::int64_t index, const StepView& step) {
  backend_ = &backend;
  const BlockWeights& block = blocks_[static_cast<std::size_t>(index)];
  const auto [begin, end] = schedule_.layers_of(index);
  if (index == 0) begin_step(step);
  if (!step.begun) backend.begin_block(beginning(index, step.x));
  for (std::int64_t i = begin; i < end; i++) {
    const LayerWeights& layer = layers_[static_cast<std::size_t>(i)];
    const AttentionShape shape = attention_shape(i);
    const bool last = i + 1 == config_.layers;
    keys_and_values(layer, shape, i, step);
    if (last) keep_rows(step.kept);
    attention(layer, shape, i, last ? *step.live : *step.rows);
    ffn(layer, i);
    if (i + 1 == end)
      end_block(block, layer, step.entry);
    else
      residual(layer.ffn_output_norm, layer.ffn_post_norm,
               layers_[static_cast<std::size_t>(i + 1)].attn_norm);
  }
}

void TrackLayers::begin_step(const StepView& step) {
  const std::int64_t count = step.x.rows;
  now_ = scratch_;
  for (Tensor* view : {&now_.h, &now_.normed, &now_.out, &now_.q, &now_.k, &now_.v, &now_.mixed})
    *view = view->first_rows(count);
  place_output();
}

// Parts of a sum of ranks go best where they are sent from.
void TrackLayers::place_output() {
  if (tensor_parallel_all_reduce_ == nullptr) return;
  now_.out = one_run(now_.out);
  float* send = tensor_parallel_all_reduce_->send_buffer(now_.out.tracks * now_.out.track_stride);
  now_.out.data = send != nullptr ? send : scratch_.out.data;
}

BlockBegin TrackLayers::beginning(std::int64_t index, Tensor x) const {
  const auto [first, end] = schedule_.layers_of(index);
  BlockBegin begin;
  begin.x = x;
  begin.h = now_.h;
  begin.normed = now_.normed;
  if (config_.fusion.dispatch_norm)
    begin.dispatch_norm = &blocks_[static_cast<std::size_t>(index)].dispatch_norm;
  if (config_.norm_placement.pre) begin.pre_norm = &layers_[static_cast<std::size_t>(first)].attn_norm;
  begin.eps = eps_;
  return begin;
}

void TrackLayers::end_block(const BlockWeights& block, const LayerWeights& last, const SyncEntry& entry) {
  if (config_.norm_placement.output) backend_->rms_norm(last.ffn_output_norm, eps_, now_.out, now_.out);
  BlockEnd end;
  end.a = now_.out;
  end.h = now_.h;
  end.y = entry.y.data == nullptr ? now_.h : entry.y;
  end.minus = entry.minus;
  if (config_.norm_placement.post) end.post_norm = &last.ffn_post_norm;
  if (config_.fusion.combine_norm) end.combine_norm = &block.combine_norm;
  end.eps = eps_;
  backend_->end_block(end);
}

void TrackLayers::keep_rows(std::span<const std::int32_t> kept) {
  if (kept.empty()) return;
  const auto count = static_cast<std::int64_t>(kept.size());
  for (Tensor* all : {&now_.h, &now_.q}) backend_->keep_rows(*all, kept);
  for (Tensor* all : {&now_.h, &now_.q, &now_.normed, &now_.out, &now_.mixed}) *all = all->first_rows(count);
  place_output();
}

AttentionShape TrackLayers::attention_shape(std::int64_t index) const {
  const AttentionKind kind = config_.attention_kind(index);
  return {config_.heads,    config_.kv_heads,
          config_.head_dim, is_local(kind) ? config_.attention_window : 0,
          has_rope(kind),   eps_};
}

void TrackLayers::keys_and_values(const LayerWeights& layer, const AttentionShape& shape, std::int64_t index,
                                  const StepView& step) {
  const Tensor input = sublayer_input();
  const LinearJob project[] = {
      {&layer.wq, input, now_.q}, {&layer.wk, input, now_.k}, {&layer.wv, input, now_.v}};
  backend_->linear(project);
  backend_->rope_append(shape, layer.q_norm, layer.k_norm, step.cos_sin, now_.q, now_.k, now_.v, *step.rows,
                        index, pool_);
}

void TrackLayers::attention(const LayerWeights& layer, const AttentionShape& shape, std::int64_t index,
                            const StepRows& rows) {
  backend_->attention(shape, now_.q, rows, index, pool_, now_.mixed);
  const LinearJob merge[] = {{&layer.wo, now_.mixed, now_.out}};
  backend_->linear(merge);
  add_parts();
  residual(layer.attn_output_norm, layer.attn_post_norm, layer.ffn_norm);
}

void TrackLayers::ffn(const LayerWeights& layer, std::int64_t index) {
  const Tensor input = sublayer_input();
  if (config_.ffn_kind(index) == FfnKind::moe) {
    moe(layer, input);
  } else {
    const Tensor gate = reshaped(now_.gate, now_.h.rows, config_.ffn_size);
    const Tensor up = reshaped(now_.up, now_.h.rows, config_.ffn_size);
    backend_->gated_linear({&layer.w_gate, input, gate}, {&layer.w_up, input, up});
    const LinearJob narrow[] = {{&layer.w_down, gate, now_.out}};
    backend_->linear(narrow);
  }
  add_parts();
}

void TrackLayers::moe(const LayerWeights& layer, Tensor input) {
  const MoeConfig& moe = *config_.moe;
  const std::int64_t chosen = now_.h.rows * moe.top_k;
  MoeJob job;
  job.shape = {moe.experts, moe.top_k, moe.ffn_size, static_cast<float>(moe.router_logit_cap.value_or(0))};
  job.router = &layer.router;
  job.gate = &layer.expert_gate;
  job.up = &layer.expert_up;
  job.down = &layer.expert_down;
  job.x = input;
  job.y = now_.out;
  job.router_logits = now_.router.first_rows(now_.h.rows);
  job.gate_out = reshaped(now_.gate, chosen, moe.ffn_size);
  job.up_out = reshaped(now_.up, chosen, moe.ffn_size);
  job.expert_out = now_.expert.first_rows(chosen);
  backend_->moe_ffn(job);
}

// The ranks that share the tracks each have a part of every sum behind wo or w_down.
void TrackLayers::add_parts() {
  if (tensor_parallel_all_reduce_ == nullptr) return;
  const float* mine[] = {now_.out.row(0, 0)};
  tensor_parallel_all_reduce_->sum(mine, now_.out.tracks * now_.out.track_stride, 1.0f, nullptr,
                                   now_.out.row(0, 0));
}

// h += out, normed where the model does; `next_norm`, where the model has it, is the pre-norm of the sublayer
// after this one, which goes with the sum in one pass.
void TrackLayers::residual(const TrackWeights& output_norm, const TrackWeights& post_norm,
                           const TrackWeights& next_norm) {
  const bool pre = config_.norm_placement.pre;
  if (config_.norm_placement.output) backend_->rms_norm(output_norm, eps_, now_.out, now_.out);
  if (config_.norm_placement.post) {
    backend_->add_rms_norm(now_.out, now_.h, post_norm, eps_, now_.h);
    if (pre) backend_->rms_norm(next_norm, eps_, now_.h, now_.normed);
  } else if (pre) {
    backend_->add_rms_norm(now_.out, now_.h, next_norm, eps_, now_.normed);
  } else {
    backend_->add(now_.out, now_.h);
  }
}

// What the sublayer's products take; without a pre-norm the stream itself, in their type.
Tensor TrackLayers::sublayer_input() {
  if (config_.norm_placement.pre) return now_.normed;
  if (now_.h.dtype == now_.normed.dtype) return now_.h;
  backend_->copy(now_.h, now_.normed);
  return now_.normed;
}

}  // namespace ptrt
