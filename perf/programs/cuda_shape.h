// The shape that the GPU benchmark measures ops at: what one rank computes of a model in a step.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/jobs.h"
#include "model_io/config/model_config.h"

namespace ptrt {

// The default: perf/configs/dense_8b.json.
struct BenchShape {
  std::string name = "dense_8b";
  std::int64_t tracks = 1, layers = 32;
  std::int64_t hidden = 4096, heads = 32, kv_heads = 8, head_dim = 128, ffn = 14336;  // of a track
  std::int64_t vocab = 128256;

  std::int64_t q_width() const { return heads * head_dim; }
  std::int64_t kv_width() const { return kv_heads * head_dim; }
  std::int64_t widest() const;  // of the rows of a layer
  // Elements of the matrices of a layer, all tracks together.
  std::int64_t layer_elements() const { return tracks * hidden * (2 * q_width() + 2 * kv_width() + 3 * ffn); }
  AttentionShape attention() const { return {heads, kv_heads, head_dim}; }
};

// The share of one of `ranks` ranks, which divide the tracks; 0: a rank for each track. Throws bad_input where they
// do not divide them, or FFNs are not all dense.
BenchShape shape_of_rank(const ModelConfig& config, std::int64_t ranks);

}  // namespace ptrt
