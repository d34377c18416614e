// The op set: the mathematics of the model, on one device. Every op serves all local tracks in one
// call (a leading `tracks` dimension).
//
// Rules every implementation keeps:
//  * Batch invariance (the CPU's; a GPU's as far as docs/CUDA.md says): what an op writes for a row
//    depends on that row and its KV pages alone, bit for bit; never on the other rows of the call,
//    the number of threads or the tiles chosen.
//  * Sums are accumulated in float32 or wider; norm and softmax statistics are float32.
//  * No op allocates: scratch is an argument, or sized once by the constructor or
//    Backend::reserve().
//  * Ops run in the order of the calls. On a device they may return before they have run; of the
//    ops, only sample(), log_probs() and top_log_probs() wait.
//
// Types: "activations" are of BackendTraits::activation_dtype or float32; a Tensor says which.
// Streams (x, h), rope angles, router logits and logits are always float32.
//
// Errors: shapes and types that do not fit are the caller's mistake and end in PTRT_CHECK where
// they are looked at. Nothing else throws, apart from a device's own errors (failure).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/block_edges.h"
#include "kernels/jobs.h"
#include "kernels/kv_pool.h"
#include "kernels/step_rows.h"
#include "kernels/tensor.h"

namespace ptrt {

class OpSet {
 public:
  OpSet() = default;
  OpSet(const OpSet&) = delete;
  OpSet& operator=(const OpSet&) = delete;
  virtual ~OpSet() = default;

  // --- Embedding and norms ---

  // x[0, r, :] = scale · table[tokens[r], :], rounded after the product; x float32.
  virtual void embed(const Weight& table, std::span<const std::int32_t> tokens, float scale, Tensor x) = 0;
  // out = RMSNorm(x), row by row, as `rule` says; x [tracks or 1, rows, d], out [tracks, rows, d],
  // which may be x.
  virtual void rms_norm(const TrackWeights& weights, NormRule rule, Tensor x, Tensor out) = 0;
  // h += a, then out = RMSNorm(h); all [tracks, rows, d]; out may be h.
  virtual void add_rms_norm(Tensor a, Tensor h, const TrackWeights& weights, NormRule rule, Tensor out) {
    add(a, h);
    rms_norm(weights, rule, h, out);
  }

  // --- Matrix products ---

  // All products of the list in one parallel region.
  virtual void linear(std::span<const LinearJob> jobs) = 0;
  // gate.y = activation(gate) · up of the two products, which are of equal sizes, read the same x
  // and have no bias; up.y is undefined afterwards.
  virtual void gated_linear(FfnActivation activation, const LinearJob& gate, const LinearJob& up) {
    const LinearJob both[] = {gate, up};
    linear(both);
    glu(activation, gate.y, up.y);
  }
  // y = the weighted sum of the top_k experts' FFNs of every row.
  virtual void moe_ffn(const MoeJob& job) = 0;

  // --- Elementwise ---

  // h += a; both [tracks, rows, d], a may have one track for all.
  virtual void add(Tensor a, Tensor h) = 0;
  // y[t] -= x: the leaves of the delta_sum fusion. x [1, rows, d] or a broadcast of it.
  virtual void subtract(Tensor x, Tensor y) = 0;
  // gate = activation(gate) · up
  virtual void glu(FfnActivation activation, Tensor gate, Tensor up) = 0;
  // out = x, track by track; x may have one track for all.
  virtual void copy(Tensor x, Tensor out) = 0;
  // out[0, i, :] = x[0, rows[i], :]
  virtual void gather_rows(Tensor x, std::span<const std::int32_t> rows, Tensor out) {
    for (std::size_t i = 0; i < rows.size(); ++i)
      copy({x.row(0, rows[i]), 1, 1, x.width, 0},
           {out.row(0, static_cast<std::int64_t>(i)), 1, 1, x.width, 0});
  }
  // x[t, i, :] = x[t, rows[i], :], in place; rows ascend; x float32.
  virtual void keep_rows(Tensor x, std::span<const std::int32_t> rows) {
    for (std::int64_t t = 0; t < x.tracks; ++t)
      for (std::size_t i = 0; i < rows.size(); ++i)
        if (const auto to = static_cast<std::int64_t>(i); rows[i] != to)
          copy({x.row(t, rows[i]), 1, 1, x.width, 0}, {x.row(t, to), 1, 1, x.width, 0});
  }

  // out [1, rows, columns] = parts side by side, float32. Part p has the columns from p · width on, `width` of them, the
  // last part those that are left; it lies, rows one after the other, at parts + p · stride elements.
  virtual void join_columns(const float* parts, std::int64_t stride, std::int64_t width, Tensor out) {
    for (std::int64_t first = 0; first < out.width; first += width, parts += stride) {
      const std::int64_t columns = std::min(width, out.width - first);
      for (std::int64_t r = 0; r < out.rows; ++r)
        std::copy_n(parts + r * columns, columns, out.row(0, r) + first);
    }
  }

  // --- Attention ---

  // cos_sin[0, r, :] = magnitude · the cosines of the head_dim/2 angles of positions[r], then
  // magnitude · their sines; [1, rows, head_dim] float32, all of it in double up to there.
  virtual void rope_angles(std::span<const std::int32_t> positions, const RopeFrequencies& rope,
                           Tensor cos_sin) = 0;
  // Per head: QK-norm, then RoPE where shape.rope (the other order with shape.norm_after_rope), on q
  // (in place) and k; then k and v of every row are written to their pages of `layer`. k is
  // undefined afterwards. Empty norm weights mean no QK-norm. q [tracks, rows, heads · head_dim], k
  // and v [tracks, rows, kv_heads · head_dim].
  virtual void rope_append(const AttentionShape& shape, const TrackWeights& q_norm,
                           const TrackWeights& k_norm, Tensor cos_sin, Tensor q, Tensor k, Tensor v,
                           const StepRows& rows, std::int64_t layer, const KvPool& pool) = 0;
  // Causal attention of every row over its sequence's pages; q and out [tracks, rows, heads ·
  // head_dim]. On the CPU, over a pool of bfloat16 and with a compute type other than float32, its
  // products take bfloat16 inputs: q · shape.query_scale() and the softmax weights are rounded, on
  // every instruction set. Otherwise neither is.
  virtual void attention(const AttentionShape& shape, Tensor q, const StepRows& rows, std::int64_t layer,
                         const KvPool& pool, Tensor out) = 0;

  // --- Around a sync ---

  // out[i] = the sum of parts[0..n)[i] by the fixed binary tree (the left part has the largest
  // power of two below the count), for i < count, float32; out may be one of the parts. `add_to`
  // (may be null) is added last: out = add_to + scale · tree.
  virtual void tree_sum(std::span<const float* const> parts, std::int64_t count, float scale,
                        const float* add_to, float* out) = 0;
  // What lies between the last product of a track block and the first of the next (block_edges.h).
  // A backend may fuse it, with the bits of these ops.
  virtual void end_block(const BlockEnd& end) {
    if (end.post_norm != nullptr)
      add_rms_norm(end.a, end.h, *end.post_norm, {end.eps, end.pre_scale_post}, end.h);
    else
      add(end.a, end.h);
    if (end.combine_norm != nullptr)
      rms_norm(*end.combine_norm, {end.eps, end.pre_scale_combine}, end.h, end.y);
    else if (end.y.data != end.h.data)
      copy(end.h, end.y);
    if (end.minus.data != nullptr) subtract(end.minus.broadcast(end.y.tracks), end.y);
  }
  virtual void begin_block(const BlockBegin& begin) {
    float* x = begin.x.row(0, 0);
    if (!begin.parts.empty())
      tree_sum(begin.parts, begin.x.rows * begin.x.width, begin.scale, begin.add_to_x ? x : nullptr, x);
    const Tensor every = begin.x.broadcast(begin.h.tracks);
    if (begin.dispatch_norm != nullptr)
      rms_norm(*begin.dispatch_norm, {begin.eps, begin.pre_scale_dispatch}, every, begin.h);
    else
      copy(every, begin.h);
    if (begin.pre_norm != nullptr)
      rms_norm(*begin.pre_norm, {begin.eps, begin.pre_scale_pre}, begin.h, begin.normed);
  }

  // --- Tokens ---

  // One token for each row of logits [1, rows, vocab]; randomness depends on (seed, position)
  // alone. A row with a NaN or an infinity gives Sampled::not_finite(); else one whose edits allow no
  // token Sampled::none_allowed(). The logits stay as they are. Waits.
  virtual void sample(Tensor logits, std::span<const SampleParams> params, std::span<Sampled> out) = 0;
  // out[r].logprob = log softmax(logits[r])[targets[r]], with statistics over fixed chunks of the
  // vocabulary; finite, or NaN for a row with a NaN or an infinity, which is not greedy. Waits.
  virtual void log_probs(Tensor logits, std::span<const std::int32_t> targets, std::span<Scored> out) = 0;
  // The counts[r] likeliest tokens of each row and their log softmax, with the bits of log_probs() and
  // sample(); counts[r] at most kMaxTopLogprobs and the vocabulary. NaN for a row with a NaN or an
  // infinity. Waits.
  virtual void top_log_probs(Tensor logits, std::span<const std::int32_t> counts,
                             std::span<TopLogprobs> out) = 0;
};

}  // namespace ptrt
