#include "runtime/model/activations.h"

#include <algorithm>

namespace ptrt {

Activations Activations::track(std::int64_t t) const {
  Activations one = *this;
  for (Tensor* all : {&one.h, &one.normed, &one.out, &one.q, &one.k, &one.v, &one.attn_out, &one.gate,
                      &one.up, &one.router, &one.expert})
    *all = all->track(t);
  return one;
}

Activations make_activations(TensorMemory& memory, const ModelConfig& config, std::int64_t tracks,
                             std::int64_t rows, std::int64_t logit_rows, DType activation_dtype,
                             bool tensor_parallel) {
  const std::int64_t d = config.hidden_size;
  const std::int64_t q_width = config.heads * config.head_dim, kv_width = config.kv_heads * config.head_dim;
  const DType dtype = activation_dtype, fp32 = DType::float32;
  Activations a;
  a.h = memory.make(tracks, rows, d, fp32, "h");
  a.normed = memory.make(tracks, rows, d, dtype, "normed");
  a.out = memory.make(tracks, rows, d, tensor_parallel ? fp32 : dtype, "sublayer output");
  a.q = memory.make(tracks, rows, q_width, dtype, "q");
  a.k = memory.make(tracks, rows, kv_width, dtype, "k");
  a.v = memory.make(tracks, rows, kv_width, dtype, "v");
  a.attn_out = memory.make(tracks, rows, q_width, dtype, "attention output");

  // Both kinds of FFN layer use the same gate and up buffers. Their widths differ, so the buffers
  // are sized by elements.
  const auto uses = [&](FfnKind kind) { return std::ranges::count(config.ffn_pattern, kind) > 0; };
  std::int64_t ffn_elements = uses(FfnKind::dense) ? config.ffn_size : 0;
  if (uses(FfnKind::moe)) {
    const MoeConfig& moe = *config.moe;
    ffn_elements = std::max(ffn_elements, moe.top_k * moe.ffn_size);
    a.router = memory.make(tracks, rows, moe.experts, fp32, "router logits");
    a.expert = memory.make(tracks, rows * moe.top_k, d, dtype, "expert outputs");
  }
  a.gate = memory.make(tracks, rows, ffn_elements, dtype, "ffn gate");
  a.up = memory.make(tracks, rows, ffn_elements, dtype, "ffn up");

  a.x = memory.make(1, rows, d, fp32, "x");
  a.cos_sin = memory.make(1, rows, config.head_dim, fp32, "rope angles");
  a.local_cos_sin = config.has_local_rope_theta()
                        ? memory.make(1, rows, config.head_dim, fp32, "rope angles of local layers")
                        : a.cos_sin;
  a.head_rows = memory.make(1, logit_rows, d, fp32, "rows for the head");
  a.head_in = dtype == fp32 ? a.head_rows : memory.make(1, logit_rows, d, dtype, "head input");
  return a;
}

}  // namespace ptrt
