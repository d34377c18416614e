// The bandwidth-bound product: 16 outputs of a weight matrix times up to 8 · kColumns rows of x, on tensor
// cores, each weight read once from memory in 16-byte pieces.
//
// The weights are the left factor of the 16×8×16 product, rows of x its columns. Within 32 consecutive inputs
// the order does not matter as long as both factors keep to the same one, so a lane's sixteen bytes (inputs
// 8·quad … 8·quad + 7) serve as its fragments of two products, without a detour through shared memory: pairs
// 0 and 1 of the first, pairs 2 and 3 of the second.
//
// A row's sums do not depend on which other rows are there: every column of the product stands for itself.
#pragma once

#include "kernels/cuda/base/numbers.cuh"
#include "kernels/cuda/ptx/mma.cuh"

namespace ptrt::cuda {

inline constexpr int kTileOuts = 16;
inline constexpr int kChunk = 32;  // inputs of two products
inline constexpr int kChunks = 4;  // whose weights a warp loads at once
inline constexpr int kMaxProductWarps = 8;

// Warps that share one tile's inputs.
inline int product_warps(std::int64_t in) {
  return static_cast<int>(
      std::min<std::int64_t>(kMaxProductWarps, ceil_div<std::int64_t>(in, kChunk * kChunks)));
}
template <int kColumns>
constexpr std::size_t product_shared_bytes(int warps) {
  return sizeof(float) * static_cast<std::size_t>(warps) * kTileOuts * 8 * kColumns;
}

template <typename T>
__device__ __forceinline__ void multiply(const Eight& upper, const Eight& lower, const Eight& x,
                                         float (&sum)[4]) {
  mma_16x8x16<T>(sum, {upper.pair[0], lower.pair[0], upper.pair[1], lower.pair[1]}, {x.pair[0], x.pair[1]});
  mma_16x8x16<T>(sum, {upper.pair[2], lower.pair[2], upper.pair[3], lower.pair[3]}, {x.pair[2], x.pair[3]});
}

// Outputs [first_out, first_out + 16) of w [outs, in] for the rows that row(i) points to, i < 8 · kColumns,
// null where there is none (the first is there); calls put(out, i, sum) for each that exists. The whole block
// works on one tile: warps divide the inputs, `partial` is shared memory of product_shared_bytes(). Ends with
// a barrier.
template <int kColumns, bool kWhole, typename T, class RowOf, class Put>
__device__ __forceinline__ void product_tile(const T* w, int in, int outs, int first_out, const RowOf& row,
                                             float* partial, const Put& put) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp, group = lane / 4, quad = lane % 4;
  // Outputs beyond the last repeat it; their sums are not put.
  const T* upper_row = w + static_cast<std::int64_t>(min(first_out + group, outs - 1)) * in;
  const T* lower_row = w + static_cast<std::int64_t>(min(first_out + group + 8, outs - 1)) * in;
  const T* x[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    // Rows beyond the last repeat the first, so that no load hangs on a branch; their sums are not put
    // either.
    const T* there = row(8 * c + group);
    x[c] = there != nullptr ? there : row(0);
  }

  float sum[kColumns][4] = {};
  for (int k = warp * kChunk * kChunks; k < in; k += warps * kChunk * kChunks) {
    Eight upper[kChunks], lower[kChunks];
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      upper[i] = load8<kWhole>(upper_row, k + i * kChunk + quad * 8, in);
      lower[i] = load8<kWhole>(lower_row, k + i * kChunk + quad * 8, in);
    }
    if constexpr (kWhole && kColumns <= 2) {
      // x too is on its way before the first product waits for its weights.
      Eight part[kChunks][kColumns];
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
#pragma unroll
        for (int c = 0; c < kColumns; ++c) part[i][c] = load8<kWhole>(x[c], k + i * kChunk + quad * 8, in);
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
#pragma unroll
        for (int c = 0; c < kColumns; ++c) multiply<T>(upper[i], lower[i], part[i][c], sum[c]);
    } else {
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          multiply<T>(upper[i], lower[i], load8<kWhole>(x[c], k + i * kChunk + quad * 8, in), sum[c]);
    }
  }

  constexpr int kRows = 8 * kColumns;
  float* mine = partial + warp * kTileOuts * kRows;  // [row][out]
#pragma unroll
  for (int c = 0; c < kColumns; ++c)
#pragma unroll
    for (int i = 0; i < 4; ++i) mine[(8 * c + 2 * quad + i % 2) * kTileOuts + group + i / 2 * 8] = sum[c][i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kTileOuts * kRows; i += static_cast<int>(blockDim.x)) {
    const int out = first_out + i % kTileOuts, r = i / kTileOuts;
    if (out >= outs || row(r) == nullptr) continue;
    float total = 0;
    for (int other = 0; other < warps; ++other) total += partial[other * kTileOuts * kRows + i];
    put(out, r, total);
  }
  __syncthreads();
}

}  // namespace ptrt::cuda
