// The device memory that the CUDA backend's reserve() allocates, for plans made without a device.
// Built without CUDA.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/step_rows.h"

namespace ptrt {

// Split-KV decode attention: a row's context is divided into splits, one block each, so that few
// rows with long contexts fill the device, and many rows have few splits to combine.
inline constexpr std::int64_t kMinSplitTokens = 256, kMaxSplitTokens = 2048;
inline constexpr std::int64_t kSplitBlocks =
    512;  // upper limit while splits can grow; a few per multiprocessor

// Where that leaves most of the device idle, a cluster of blocks shares a split, of which a block has kBlockTokens: a page
// for each of its warps. The cluster adds up its blocks' parts through shared memory.
inline constexpr std::int64_t kClusterBlocks = 8, kBlockTokens = 64;
inline constexpr std::int64_t kClusteredBlocks = 256;  // upper limit: more fill the device by themselves
// Contexts below have too few splits to gain by it.
inline constexpr std::int64_t kMinClusteredContext = 1024;

struct Splits {
  std::int64_t tokens = 0, count = 1, cluster = 1;
};
// The splits for contexts of up to `context` tokens, of which a row sees `window` (0: all); units:
// tracks × rows × KV heads.
constexpr Splits decode_splits(std::int64_t units, std::int64_t context, std::int64_t window,
                               bool has_clusters) {
  const auto count_of = [&](std::int64_t tokens) {
    const std::int64_t count = (context + tokens - 1) / tokens;
    return window > 0 ? std::min(count, (window + tokens - 2) / tokens + 1) : count;
  };
  constexpr std::int64_t kClusterTokens = kClusterBlocks * kBlockTokens;
  if (has_clusters && std::min(context, window > 0 ? window : context) >= kMinClusteredContext &&
      units * count_of(kClusterTokens) * kClusterBlocks <= kClusteredBlocks)
    return {kClusterTokens, count_of(kClusterTokens), kClusterBlocks};
  for (std::int64_t tokens = kMinSplitTokens;; tokens *= 2) {
    const std::int64_t count = count_of(tokens);
    if (units * count <= kSplitBlocks || tokens == kMaxSplitTokens) return {tokens, count};
  }
}
// The largest number of heads × splits, over all tracks and rows, of one launch; 0 if there is
// never a split.
inline std::int64_t most_head_splits(const WorkLimits& limits) {
  const std::int64_t heads = limits.tracks * limits.decode_rows() * limits.heads;
  const auto splits = [&](std::int64_t tokens) { return (limits.context + tokens - 1) / tokens; };
  if (splits(kMinSplitTokens) <= 1) return 0;
  // While splits can grow, there are up to kSplitBlocks blocks, each of all heads if there is one
  // KV head.
  const std::int64_t growing = std::min(kSplitBlocks * limits.heads, heads * splits(kMinSplitTokens));
  return std::max(growing, heads * splits(kMaxSplitTokens));
}

// Rows of logits that are edited at once, and the edits of single tokens in all of them.
constexpr std::int64_t most_edited_rows(const WorkLimits& limits) {
  return limits.vocab > 0 ? std::min<std::int64_t>(limits.logit_rows, 64) : 0;
}
constexpr std::int64_t most_token_edits(const WorkLimits& limits) {
  return limits.vocab > 0 ? std::max<std::int64_t>(limits.vocab, 16384) : 0;  // at least those of one row
}

// Bytes of device memory, each allocation rounded up to cudaMalloc's granularity.
std::size_t cuda_scratch_bytes(const WorkLimits& limits);

}  // namespace ptrt
