#include "runtime/model/track_layers.h"

#include "kernels/base/error.h"

namespace ptrt {
namespace {

// The same memory, with rows of another width.
Tensor reshaped(const Tensor& all, std::int64_t rows, std::int64_t width) {
  return {all.data, all.tracks, rows, width, all.track_stride, all.dtype};
}

// The same memory, without gaps between the tracks' rows, so that it is one message.
Tensor contiguous(Tensor x) {
  x.track_stride = x.rows * x.width;
  return x;
}

// Null where the model has no such bias.
const TrackWeights* bias(const TrackWeights& weights) {
  return weights.empty() ? nullptr : &weights;
}

}  // namespace

TrackShard shard_of_track(const TrackShard& shard, std::int64_t track) {
  const auto index = static_cast<std::size_t>(track);
  TrackShard one;
  one.first_track = shard.first_track + track;
  one.tracks = 1;
  one.split = shard.split;
  for (const LayerWeights& layer : shard.layers) one.layers.push_back(of_track(layer, index));
  for (const BlockWeights& block : shard.blocks) one.blocks.push_back(of_track(block, index));
  return one;
}

TrackLayers::TrackLayers(const ModelConfig& config, const SyncSchedule& schedule, const TrackShard& shard,
                         const KvPool& pool, const Activations& activations, AllReduce* tensor_parallel,
                         std::int64_t first_track)
    : config_(config),
      schedule_(schedule),
      shard_(shard),
      pool_(pool),
      activations_(activations),
      tensor_parallel_(tensor_parallel),
      first_track_(first_track),
      eps_(static_cast<float>(config.norm_eps)),
      pre_rule_(eps_, config.pre_scale_norms.pre),
      output_rule_(eps_, config.pre_scale_norms.output),
      post_rule_(eps_, config.pre_scale_norms.post) {}

void TrackLayers::bind_views(const StepView& step) {
  const std::int64_t count = std::ssize(step.rows->positions);
  view_ = step;
  step_ = activations_;
  for (Tensor* all : {&step_.h, &step_.normed, &step_.out, &step_.q, &step_.k, &step_.v, &step_.attn_out})
    *all = all->first_rows(count);
  place_output();
}

// With tensor parallelism, sublayers write their parts where the all-reduce sends from, and it adds them into step_.out: a
// kernel that writes what is sent may not let its successor begin early (kernels/cuda/base/collective_memory.h).
void TrackLayers::place_output() {
  part_ = step_.out;
  if (tensor_parallel_ == nullptr) return;
  part_ = step_.out = contiguous(step_.out);
  if (float* send = tensor_parallel_->send_buffer(part_.tracks * part_.track_stride); send != nullptr)
    part_.data = send;
}

void TrackLayers::begin_block(Backend& lane, std::int64_t block, Tensor x, const BlockInput& input) {
  BlockBegin begin;
  begin.parts = input.parts;
  begin.scale = input.scale;
  begin.add_to_x = input.add_to_x;
  begin.x = x;
  begin.h = step_.h;
  begin.normed = step_.normed;
  if (config_.fusion.dispatch_norm)
    begin.dispatch_norm = &shard_.blocks[static_cast<std::size_t>(block)].dispatch_norm;
  if (config_.norm_placement.pre) begin.pre_norm = &weights(schedule_.layers_of(block).begin).attn_norm;
  begin.eps = eps_;
  begin.pre_scale_dispatch = config_.pre_scale_norms.dispatch;
  begin.pre_scale_pre = config_.pre_scale_norms.pre;
  lane.begin_block(begin);
  input.consumed();
}

void TrackLayers::attention(Backend& lane, std::int64_t layer) {
  const LayerWeights& w = weights(layer);
  const AttentionShape shape = attention_shape(layer);
  append_keys_and_values(lane, layer, shape);
  const bool last = layer + 1 == config_.layers;
  if (last) drop_rows(lane);
  lane.attention(shape, step_.q, last ? *view_.active : *view_.rows, layer, pool_, step_.attn_out);
  // Of the ranks that share the track, one adds the bias.
  const LinearJob merge[] = {{&w.wo, step_.attn_out, part_, shard_.split.rank == 0 ? bias(w.bo) : nullptr}};
  lane.linear(merge);
  add_parts();
  residual(lane, w.attn_output_norm, w.attn_post_norm, w.ffn_norm);
}

void TrackLayers::append_keys_and_values(Backend& lane, std::int64_t layer, const AttentionShape& shape) {
  const LayerWeights& w = weights(layer);
  const Tensor input = sublayer_input(lane);
  const LinearJob project[] = {{&w.wq, input, step_.q, bias(w.bq)},
                               {&w.wk, input, step_.k, bias(w.bk)},
                               {&w.wv, input, step_.v, bias(w.bv)}};
  lane.linear(project);
  const Tensor angles = is_local(config_.attention_kind(layer)) ? view_.local_cos_sin : view_.cos_sin;
  lane.rope_append(shape, w.q_norm, w.k_norm, angles, step_.q, step_.k, step_.v, *view_.rows, layer, pool_);
}

void TrackLayers::drop_rows(Backend& lane) {
  if (view_.retained.empty()) return;
  const auto count = std::ssize(view_.retained);
  for (Tensor* all : {&step_.h, &step_.q}) lane.keep_rows(*all, view_.retained);
  for (Tensor* all : {&step_.h, &step_.q, &step_.normed, &step_.out, &step_.attn_out})
    *all = all->first_rows(count);
  place_output();
}

// Writes the sublayer's output; the last layer of a block leaves adding it to h to end_block().
void TrackLayers::ffn(Backend& lane, std::int64_t layer) {
  const LayerWeights& w = weights(layer);
  const Tensor input = sublayer_input(lane);
  if (config_.ffn_kind(layer) == FfnKind::moe) {
    moe(lane, w, input);
  } else {
    const Tensor gate = reshaped(step_.gate, step_.h.rows, config_.ffn_size);
    const Tensor up = reshaped(step_.up, step_.h.rows, config_.ffn_size);
    lane.gated_linear(config_.ffn_activation, {&w.w_gate, input, gate}, {&w.w_up, input, up});
    const LinearJob narrow[] = {{&w.w_down, gate, part_}};
    lane.linear(narrow);
  }
  add_parts();
  if (!schedule_.ends_block(layer))
    residual(lane, w.ffn_output_norm, w.ffn_post_norm, weights(layer + 1).attn_norm);
}

void TrackLayers::moe(Backend& lane, const LayerWeights& layer, Tensor input) {
  const MoeConfig& moe = *config_.moe;
  const std::int64_t chosen = step_.h.rows * moe.top_k;
  MoeJob job;
  job.shape = {.experts = moe.experts,
               .top_k = moe.top_k,
               .ffn_size = moe.ffn_size,
               .router_logit_cap = static_cast<float>(moe.router_logit_cap.value_or(0)),
               .normalize_top_k = moe.normalize_top_k,
               .activation = config_.ffn_activation};
  job.router = &layer.router;
  job.gate = &layer.expert_gate;
  job.up = &layer.expert_up;
  job.down = &layer.expert_down;
  job.x = input;
  job.y = part_;
  job.router_logits = step_.router.first_rows(step_.h.rows);
  job.gate_out = reshaped(step_.gate, chosen, moe.ffn_size);
  job.up_out = reshaped(step_.up, chosen, moe.ffn_size);
  job.expert_out = step_.expert.first_rows(chosen);
  lane.moe_ffn(job);
}

void TrackLayers::end_block(Backend& lane, std::int64_t block, const BlockOutput& output) {
  const LayerWeights& last = weights(schedule_.layers_of(block).end - 1);
  norm_output(lane, last.ffn_output_norm);
  BlockEnd end;
  end.a = step_.out;
  end.h = step_.h;
  end.y = output.y.tracks == step_.h.tracks ? output.y : output.y.track(first_track_);
  end.minus = output.minus;
  if (config_.norm_placement.post) end.post_norm = &last.ffn_post_norm;
  if (config_.fusion.combine_norm)
    end.combine_norm = &shard_.blocks[static_cast<std::size_t>(block)].combine_norm;
  end.eps = eps_;
  end.pre_scale_post = config_.pre_scale_norms.post;
  end.pre_scale_combine = config_.pre_scale_norms.combine;
  lane.end_block(end);
}

// Ranks that share the tracks each have one part of every sublayer's output.
void TrackLayers::add_parts() {
  if (tensor_parallel_ == nullptr) return;
  const float* mine[] = {part_.row(0, 0)};
  tensor_parallel_->sum(mine, part_.tracks * part_.track_stride, 1.0f, nullptr, step_.out.row(0, 0));
}

// h += out, each normed where the model norms it. Where the model has pre-norms, `next_norm` is
// that of the next sublayer, computed in the same pass.
void TrackLayers::residual(Backend& lane, const TrackWeights& output_norm, const TrackWeights& post_norm,
                           const TrackWeights& next_norm) {
  const bool pre = config_.norm_placement.pre;
  norm_output(lane, output_norm);
  if (config_.norm_placement.post) {
    lane.add_rms_norm(step_.out, step_.h, post_norm, post_rule_, step_.h);
    if (pre) lane.rms_norm(next_norm, pre_rule_, step_.h, step_.normed);
  } else if (pre) {
    lane.add_rms_norm(step_.out, step_.h, next_norm, pre_rule_, step_.normed);
  } else {
    lane.add(step_.out, step_.h);
  }
}

void TrackLayers::norm_output(Backend& lane, const TrackWeights& output_norm) {
  if (config_.norm_placement.output) lane.rms_norm(output_norm, output_rule_, step_.out, step_.out);
}

// What the sublayer's products read; without a pre-norm the stream itself, in their dtype.
Tensor TrackLayers::sublayer_input(Backend& lane) {
  if (config_.norm_placement.pre) return step_.normed;
  if (step_.h.dtype == step_.normed.dtype) return step_.h;
  lane.copy(step_.h, step_.normed);
  return step_.normed;
}

AttentionShape TrackLayers::attention_shape(std::int64_t layer) const {
  const AttentionKind kind = config_.attention_kind(layer);
  return {.heads = config_.heads,
          .kv_heads = config_.kv_heads,
          .head_dim = config_.head_dim,
          .window = is_local(kind) ? config_.attention_window : 0,
          .rope = has_rope(kind),
          .norm_eps = eps_,
          .norm_after_rope = config_.qk_norm_order == QkNormOrder::after_rope,
          .scale = static_cast<float>(config_.attention_scale.value_or(0))};
}

}  // namespace ptrt
