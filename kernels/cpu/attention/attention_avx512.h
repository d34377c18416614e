// Attention by the instruction that multiplies bfloat16 pairs (AVX-512-BF16), over pages of
// bfloat16.
#pragma once

#include <cstdint>

#include "kernels/cpu/attention/attention_tiles.h"

namespace ptrt {

// Words of a query, two elements each, of an odd head_dim a zero in the last. Each file has its own
// copy.
namespace {
constexpr std::int64_t query_words(std::int64_t head_dim) {
  return (head_dim + 1) / 2;
}
}  // namespace

// Whether this build has them; on other processors than x86 queries and weights are rounded for float32 products.
#ifdef __x86_64__
inline constexpr bool kAttentionTakesPairs = true;
#else
inline constexpr bool kAttentionTakesPairs = false;
#endif

// words = bfloat16(q · scale), to nearest, ties to even.
void round_query_avx512(const float* q, std::int64_t head_dim, float scale, std::uint32_t* words);

// A tile of up to kTileQueries queries, `q` their words one after another. seen[query] never falls
// from one query to the next, at either end. A score is one chain over head_dim, an element of the
// values one chain over the tokens seen, both ascending and two products a step.
void attend_tile_avx512(std::int64_t queries, const std::uint32_t* q, std::int64_t head_dim,
                        const SpanPages<std::uint16_t>& span, const TokenRange* seen, const TileState& state);

}  // namespace ptrt
