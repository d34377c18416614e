// The sum of the tracks' parts in the fixed order of a binary tree (docs/SPEC.md, Reproducibility),
// by element.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kernels/cuda/base/row_vector.cuh"
#include "kernels/cuda/ops/elementwise.h"

namespace ptrt::cuda {

struct TreeParts {
  const float* at[kMaxTreeParts];
  int count;
};

inline TreeParts tree_parts(std::span<const float* const> parts) {
  TreeParts all{};
  std::copy(parts.begin(), parts.end(), all.at);
  all.count = static_cast<int>(parts.size());
  return all;
}

// total[j] = tree sum of element i + j of all parts. The tree whose left branch has the largest
// power of two below the count is evaluated as a binary counter: parts are added in ascending
// order, two sums of equal size merge into one of twice the size, and at the end the remaining sums
// are added from the smallest up.
template <int kElements>
__device__ __forceinline__ void tree_sum(const TreeParts& parts, std::int64_t i, float (&total)[kElements]) {
  constexpr int kLevels = 7;
  static_assert(1 << (kLevels - 1) >= kMaxTreeParts);
  // sums[level]: of 2^level parts; valid if that bit of the number of parts so far is set.
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
