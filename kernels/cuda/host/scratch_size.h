// How much device memory the CUDA backend's reserve() takes; for plans made before there is a device. Built
// without CUDA.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/backend.h"

namespace ptrt {

// Decode attention cuts a row's context into splits, one block each, so that few rows with long contexts fill
// the device and many rows have few splits to put together.
inline constexpr std::int64_t kMinSplitTokens = 256, kMaxSplitTokens = 2048;
inline constexpr std::int64_t kSplitBlocks = 512;  // wanted at most; a few on every multiprocessor

struct Splits {
  std::int64_t tokens = 0, count = 1;
};
// Of contexts of up to `context` tokens, of which a row sees `window` (0: all); units: tracks × rows × KV
// heads.
constexpr Splits decode_splits(std::int64_t units, std::int64_t context, std::int64_t window) {
  for (std::int64_t tokens = kMinSplitTokens;; tokens *= 2) {
    std::int64_t count = (context + tokens - 1) / tokens;
    if (window > 0) count = std::min(count, (window + tokens - 2) / tokens + 1);
    if (units * count <= kSplitBlocks || tokens == kMaxSplitTokens) return {tokens, count};
  }
}
// Heads × splits, of all tracks and rows, that there can be at once.
constexpr std::int64_t most_head_splits(const WorkLimits& limits) {
  const std::int64_t heads = limits.tracks * limits.sequences * limits.heads;
  const auto splits = [&](std::int64_t tokens) { return (limits.context + tokens - 1) / tokens; };
  if (splits(kMinSplitTokens) <= 1) return 0;
  // As long as splits grow, there are up to kSplitBlocks of them, each of all heads if they have one KV head.
  const std::int64_t growing = std::min(kSplitBlocks * limits.heads, heads * splits(kMinSplitTokens));
  return std::max(growing, heads * splits(kMaxSplitTokens));
}

// Bytes on the device, each piece rounded up as cudaMalloc may.
std::size_t cuda_scratch_bytes(const WorkLimits& limits);

}  // namespace ptrt
