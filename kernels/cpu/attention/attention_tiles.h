// What the attention kernels share: how the tokens of a sequence are cut, and the tile that a
// kernel computes, which is a few queries of one KV head with one span of tokens.
//
// A query's result from a tile depends only on that query and the tokens it sees. A token that it
// does not see is never multiplied into it.
#pragma once

#include <cstdint>

#include "kernels/kv_pool.h"

namespace ptrt {

inline constexpr std::int64_t kSpanPages = 4, kSpanTokens = kSpanPages * kPageTokens;
inline constexpr std::int64_t kPieceTokens = 8 * kSpanTokens;
inline constexpr int kTileQueries = 6;         // queries whose sums stay in registers together
inline constexpr std::int64_t kSumLanes = 16;  // lanes of the widest vector

// The keys and values of one head in the pages of a span (kv_layout.h), and how many pages there
// are. Every pointer can be read through, also of pages past the last one.
template <typename T>
struct SpanPages {
  const T* keys[kSpanPages];
  const T* values[kSpanPages];
  std::int64_t pages = 0;
  // The same places of the next span, to prefetch: pages are scattered, and each is too short for
  // the processor's own prefetchers. Null at the end of a piece, and for all tiles of a span except
  // one.
  const T* const* next_keys = nullptr;
  const T* const* next_values = nullptr;
};

// Tokens of a span, [begin, end).
struct TokenRange {
  std::int64_t begin = 0, end = 0;
  bool empty() const { return begin >= end; }
};

// The running state of the queries of a tile, one after another.
struct TileState {
  float* acc;   // [queries, stride]     Σ weight · value
  float* sums;  // [queries, kSumLanes]  Σ weight, lane by lane
  float* max;   // [queries]             the largest score
  std::int64_t stride;
};

}  // namespace ptrt
