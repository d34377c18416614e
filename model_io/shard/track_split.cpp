#include "model_io/shard/track_split.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

bool fits(const ModelConfig& config, std::int64_t ranks) {
  const auto uses = [&](FfnKind kind) { return std::ranges::count(config.ffn_pattern, kind) > 0; };
  return config.heads % ranks == 0 && (config.kv_heads % ranks == 0 || ranks % config.kv_heads == 0) &&
         (!uses(FfnKind::dense) || config.ffn_size % ranks == 0) &&
         (!uses(FfnKind::moe) || config.moe->ffn_size % ranks == 0);
}

// Where a rank's part of an extent begins: parts are equal, and several ranks in a row share one
// where there are more ranks than parts.
std::int64_t first_of(std::int64_t whole, std::int64_t mine, const TrackSplit& split) {
  const std::int64_t parts = whole / mine;
  return split.rank * parts / split.ranks * mine;
}

}  // namespace

std::vector<std::int64_t> fitting_splits(const ModelConfig& config) {
  std::vector<std::int64_t> sizes;
  for (std::int64_t ranks = 1; ranks <= config.heads; ranks++)
    if (fits(config, ranks)) sizes.push_back(ranks);
  return sizes;
}

void check_split(const ModelConfig& config, std::int64_t ranks) {
  if (ranks >= 1 && fits(config, ranks)) return;
  throw_bad_input(
      "--tensor-parallel {}: a track has {} heads, {} KV heads and an FFN of width {}; one of {} ranks can "
      "share it",
      ranks, config.heads, config.kv_heads, config.moe ? config.moe->ffn_size : config.ffn_size,
      fmt::join(fitting_splits(config), ", "));
}

ModelConfig config_of_rank(const ModelConfig& config, const TrackSplit& split) {
  if (split.ranks == 1) return config;
  check_split(config, split.ranks);
  ModelConfig mine = config;
  mine.heads /= split.ranks;
  mine.kv_heads = std::max<std::int64_t>(1, config.kv_heads / split.ranks);
  mine.ffn_size /= split.ranks;
  if (mine.moe) mine.moe->ffn_size /= split.ranks;
  return mine;
}

TensorPart part_of(const TensorSpec& whole, const TensorSpec& mine, const TrackSplit& split) {
  const WeightSpec all = whole.weight(DType::float32), part = mine.weight(DType::float32);
  PTRT_CHECK(whole.path == mine.path && all.out % part.out == 0 && all.in % part.in == 0);
  return {first_of(all.out, part.out, split), part.out, first_of(all.in, part.in, split), part.in};
}

}  // namespace ptrt
