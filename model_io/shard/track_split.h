// How K ranks share one track (Megatron-LM, arXiv 1909.08053): each takes its heads and its columns
// of the FFN. The products after them give partial sums, which the ranks add (runtime/sync).
#pragma once

#include <cstdint>
#include <vector>

#include "model_io/config/model_config.h"
#include "model_io/config/tensor_names.h"

namespace ptrt {

struct TrackSplit {
  std::int64_t ranks = 1, rank = 0;  // K, and this rank's place among them
};

// The numbers of ranks that can share a track: those that divide heads and FFN widths, and either
// divide the KV heads or are a multiple of their number (each KV head is then on several ranks).
std::vector<std::int64_t> fitting_splits(const ModelConfig& config);
// Throws bad_input that names the numbers that fit.
void check_split(const ModelConfig& config, std::int64_t ranks);

// What one rank computes: `config` with its share of heads, KV heads and FFN widths.
ModelConfig config_of_rank(const ModelConfig& config, const TrackSplit& split);

// A part of each matrix of a tensor: rows [first_row, first_row + rows), columns [first_column,
// first_column + columns).
struct TensorPart {
  std::int64_t first_row = 0, rows = 0, first_column = 0, columns = 0;
};
// `whole` and `mine` are the same tensor of the model's config and of config_of_rank().
TensorPart part_of(const TensorSpec& whole, const TensorSpec& mine, const TrackSplit& split);

}  // namespace ptrt
