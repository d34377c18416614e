// How a page of the CPU backend holds the keys or the values of one head, kPageTokens · head_dim elements.
//
//   float32   keys [head_dim][kPageTokens], values [kPageTokens][head_dim]
//   bfloat16  two elements that meet in one sum side by side, as the products of bfloat16 pairs take them:
//             keys [head_dim / 2][kPageTokens][2 elements], of an odd head_dim the last element after them,
//             [kPageTokens]; values [kPageTokens / 2][head_dim][2 tokens]
//
// So a vector of tokens meets an element (or two) of q, and a vector of elements the weight of a token (or
// two).
#pragma once

#include <cstdint>

#include "kernels/kv_pool.h"

namespace ptrt {

// Index of element j of the key of the page's token `place`.
inline std::int64_t key_index(const KvPool& kv, std::int64_t place, std::int64_t j) {
  const bool alone = kv.dtype == DType::float32 || (j == kv.head_dim - 1 && j % 2 == 0);
  return alone ? j * kPageTokens + place : (j / 2 * kPageTokens + place) * 2 + j % 2;
}

// The same for its value.
inline std::int64_t value_index(const KvPool& kv, std::int64_t place, std::int64_t j) {
  return kv.dtype == DType::float32 ? place * kv.head_dim + j : (place / 2 * kv.head_dim + j) * 2 + place % 2;
}

}  // namespace ptrt
