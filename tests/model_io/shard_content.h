// What a backend holds of a shard, byte by byte.
#pragma once

#include <string>
#include <vector>

#include "kernels/cpu/weights/packed.h"
#include "model_fixture.h"
#include "model_io/shard/track_shard.h"

namespace ptrt {

// Matrices of many pieces, with rows and columns that fill no panel and no line.
inline ModelConfig many_pieces() {
  return small_config(
      {{"tracks", 1},
       {"hidden_size", 210},
       {"ffn_size", 1001},
       {"vocab_size", 1003},
       {"moe", {{"experts", 3}, {"top_k", 2}, {"ffn_size", 333}, {"router_logit_cap", nullptr}}},
       {"layers", 2},
       {"sync_layers", {2}}});
}

inline std::string bytes_of(const Weight& w) {
  const auto elements = static_cast<std::size_t>(w.count * w.out * w.in);
  const std::size_t bytes = w.packed ? static_cast<std::size_t>(w.count * packed_layout(w).matrix_bytes())
                                     : elements * size_of(w.dtype);
  return {static_cast<const char*>(w.data), bytes};
}

// Of the shared tensors and of a track of the model, as one rank has read them.
inline std::uint64_t shared_digest(const ModelConfig& config, const TrackShard& shard) {
  return owner_digest(config, shard.contents, 0);
}
inline std::uint64_t track_digest(const ModelConfig& config, const TrackShard& shard, std::size_t track) {
  return owner_digest(config, shard.contents, track + 1);
}

// Everything that a backend holds of the model, in one order.
inline std::vector<std::string> all_weights(const TrackShard& shard) {
  std::vector<std::string> all{bytes_of(shard.embedding), bytes_of(shard.lm_head),
                               bytes_of(shard.final_norm[0])};
  for (const LayerWeights& layer : shard.layers)
    for (const TrackWeights* tensor :
         {&layer.attn_norm, &layer.wq, &layer.wk, &layer.wv, &layer.wo, &layer.q_norm, &layer.w_gate,
          &layer.w_up, &layer.w_down, &layer.router, &layer.expert_gate, &layer.expert_up,
          &layer.expert_down})
      for (const Weight& weight : *tensor) all.push_back(bytes_of(weight));
  return all;
}

}  // namespace ptrt
