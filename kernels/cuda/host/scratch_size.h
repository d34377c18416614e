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

struct Splits {
  std::int64_t tokens = 0, count = 1;
};
// The splits for contexts of up to `context` tokens, of which a row sees `window` (0: all); units:
// tracks × rows × KV heads.
constexpr Splits decode_splits(std::int64_t units, std::int64_t context, std::int64_t window) {
  for (std::int64_t tokens = kMinSplitTokens;; tokens *= 2) {
    std::int64_t count = (context + tokens - 1) / tokens;
    if (window > 0) count = std::min(count, (window + tokens - 2) / tokens + 1);
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
