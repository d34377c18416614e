// The softmax and the output of the prefill kernels, for the accumulator layout that mma.sync and
// wgmma share. With group = lane / 4 and quad = lane % 4, a thread has two rows of 16, `group`
// (half 0) and `group` + 8 (half 1): columns 8 · j + 2 · quad and + 1 are elements 4 · j + 2 · half
// and + 1 of an accumulator, an array float[n] or float[n / 4][4].
#pragma once

#include "kernels/cuda/attention/prefill_tile.cuh"
#include "kernels/cuda/base/reduce.cuh"

namespace ptrt::cuda {

// Element i of columns 8 · j … of an accumulator, and the number of such groups of columns.
template <int kElements>
__device__ __forceinline__ float& element(float (&acc)[kElements], int j, int i) {
  return acc[4 * j + i];
}
template <int kGroups>
__device__ __forceinline__ float& element(float (&acc)[kGroups][4], int j, int i) {
  return acc[j][i];
}
template <int kElements>
constexpr int column_groups(const float (&)[kElements]) {
  return kElements / 4;
}
template <int kGroups>
constexpr int column_groups(const float (&)[kGroups][4]) {
  return kGroups;
}

// Sets the scores of tokens that a row does not see to -∞. The columns are tokens from position
// `first` on.
template <class Scores>
__device__ __forceinline__ void apply_mask(Scores& scores, int half, int first, VisibleTokens visible) {
#pragma unroll
  for (int j = 0; j < column_groups(scores); ++j)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int position = first + j * 8 + lane_id() % 4 * 2 + i;
      if (position > visible.last || position < visible.first) element(scores, j, 2 * half + i) = -INFINITY;
    }
}

// acc_o of one row *= rescale.
template <class Accumulator>
__device__ __forceinline__ void rescale_row(Accumulator& acc_o, int half, float rescale) {
#pragma unroll
  for (int j = 0; j < column_groups(acc_o); ++j) {
    element(acc_o, j, 2 * half) *= rescale;
    element(acc_o, j, 2 * half + 1) *= rescale;
  }
}

// Running maximum and sum of a thread's two rows. Exp2: a function object, x -> 2^x.
template <class Exp2>
struct OnlineSoftmax {
  float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {0, 0};  // row_sum: over this thread's columns

  // Replaces the scores of one row by P = 2^(score · scale − row_max · scale). Returns the factor
  // by which the row's output so far must be rescaled.
  template <class Scores>
  __device__ __forceinline__ float update(Scores& scores, int half, float scale) {
    const Exp2 exp2;
    float new_max = row_max[half];
#pragma unroll
    for (int j = 0; j < column_groups(scores); ++j)
      new_max = fmaxf(new_max, fmaxf(element(scores, j, 2 * half), element(scores, j, 2 * half + 1)));
    new_max = warp_max<4>(new_max);
    const float scaled_max = new_max == -INFINITY ? 0.0f : new_max * scale;  // no token visible yet
    const float rescale = exp2(row_max[half] * scale - scaled_max);
    row_max[half] = new_max;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < column_groups(scores); ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = element(scores, j, 2 * half + i);
        score = exp2(score * scale - scaled_max);
        sum += score;
      }
    row_sum[half] = row_sum[half] * rescale + sum;
    return rescale;
  }

  // The factor that turns the accumulated output of a row into the result.
  __device__ __forceinline__ float output_scale(int half) const {
    return 1.0f / warp_sum<4>(row_sum[half]);
  }
};

// P of tokens [16 · k, 16 · k + 16), rounded to T, as the left factor of an mma or wgmma.
template <typename T, class Scores>
__device__ __forceinline__ void pack_p(Scores& scores, int k, std::uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    a[i] = pack<T>(element(scores, 2 * k + i / 2, i % 2 * 2), element(scores, 2 * k + i / 2, i % 2 * 2 + 1));
}

// out[column] = acc_o · scale for one row. `out`: the row's vector of head_dim elements, fewer than
// the accumulator has unless kFullWidth.
template <bool kFullWidth, typename T, class Accumulator>
__device__ __forceinline__ void store_row(Accumulator& acc_o, int half, float scale, int head_dim, T* out) {
  const int first_column = lane_id() % 4 * 2;
  T* mine = out + first_column;
#pragma unroll
  for (int j = 0; j < column_groups(acc_o); ++j) {
    const int column = 8 * j + first_column;
    const float a = element(acc_o, j, 2 * half) * scale, b = element(acc_o, j, 2 * half + 1) * scale;
    if constexpr (kFullWidth) {
      *reinterpret_cast<std::uint32_t*>(mine + 8 * j) = pack<T>(a, b);
    } else if (head_dim % 2 == 0) {
      if (column < head_dim) *reinterpret_cast<std::uint32_t*>(mine + 8 * j) = pack<T>(a, b);
    } else {
      if (column < head_dim) store(mine + 8 * j, a);
      if (column + 1 < head_dim) store(mine + 8 * j + 1, b);
    }
  }
}

}  // namespace ptrt::cuda
