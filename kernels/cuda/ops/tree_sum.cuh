// The fixed tree over the tracks' parts (docs/SPEC.md, Reproducibility), element by element.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kernels/cuda/base/row_vector.cuh"
#include "kernels/cuda/ops/elementwise.h"

namespace ptrt::cuda {

struct TreeParts {
  const float* at[kMaxTreeParts];
  int count;  // 0: there are none
};

inline TreeParts tree_parts(std::span<const float* const> parts) {
  TreeParts all{};
  std::copy(parts.begin(), parts.end(), all.at);
  all.count = static_cast<int>(parts.size());
  return all;
}

// total[j] = tree of element i + j of all parts. The tree whose left part takes the largest power of two
// below the count is a binary counter: parts come in ascending order, two sums of equal size make one of
// twice the size, and what is left at the end is added from the smallest up.
template <int kElements>
__device__ __forceinline__ void tree(const TreeParts& parts, std::int64_t i, float (&total)[kElements]) {
  constexpr int kLevels = 7;
  static_assert(1 << (kLevels - 1) >= kMaxTreeParts);
  // Of 2^level parts, where that bit of the number of parts so far is set.
  float sums[kLevels][kElements] = {};
  for (int part = 0; part < parts.count; ++part) {
    float sum[kElements];
    load(parts.at[part] + i, sum);
    bool placed = false;
#pragma unroll
    for (int level = 0; level < kLevels; ++level) {
      if (placed) continue;
      placed = (part >> level & 1) == 0;
#pragma unroll
      for (int j = 0; j < kElements; ++j)
        if (placed)
          sums[level][j] = sum[j];
        else
          sum[j] = sums[level][j] + sum[j];
    }
  }
  bool any = false;
#pragma unroll
  for (int j = 0; j < kElements; ++j) total[j] = 0;
#pragma unroll
  for (int level = 0; level < kLevels; ++level)
    if ((parts.count >> level & 1) != 0) {
#pragma unroll
      for (int j = 0; j < kElements; ++j) total[j] = any ? sums[level][j] + total[j] : sums[level][j];
      any = true;
    }
}

}  // namespace ptrt::cuda
