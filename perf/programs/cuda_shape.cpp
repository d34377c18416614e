#include "cuda_shape.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace ptrt {

std::int64_t BenchShape::widest() const {
  return std::max({hidden, q_width(), kv_width(), ffn});
}

BenchShape shape_of_rank(const ModelConfig& config, std::int64_t ranks) {
  if (std::ranges::count(config.ffn_pattern, FfnKind::dense) != std::ssize(config.ffn_pattern))
    throw_bad_input("{}: the benchmark's layers have dense FFNs, this model has experts", config.name);
  if (ranks == 0) ranks = config.tracks;
  if (ranks < 0 || config.tracks % ranks != 0)
    throw_bad_input("--ranks {}: they do not divide the {} tracks of {}", ranks, config.tracks, config.name);
  return {.name = config.name,
          .tracks = config.tracks / ranks,
          .layers = config.layers,
          .hidden = config.hidden_size,
          .heads = config.heads,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .ffn = config.ffn_size,
          .vocab = config.vocab_size};
}

}  // namespace ptrt
