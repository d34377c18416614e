// The bandwidth-bound GEMM: a tile of 16 outputs of a weight matrix times up to 8 · kTilesN rows of
// x, on tensor cores. Each weight is read once from memory, in 16-byte pieces.
//
// The weights are the left factor of m16n8k16, rows of x its columns. The order of the inputs
// within 32 consecutive ones does not matter as long as both factors use the same order. So a
// lane's sixteen bytes (inputs 8·quad … 8·quad + 7) are its fragments of two mmas, without a detour
// through shared memory: pairs 0 and 1 of the first, pairs 2 and 3 of the second.
//
// Batch-invariant: a row's result does not depend on the other rows, since the columns of an mma
// are independent.
#pragma once

#include <algorithm>

#include "kernels/cuda/base/dtypes.cuh"
#include "kernels/cuda/ptx/mma.cuh"

namespace ptrt::cuda {

inline constexpr int kTileOuts = 16;
inline constexpr int kChunk = 32;  // inputs of two mmas
inline constexpr int kChunks = 4;  // loaded at once by a warp
inline constexpr int kMaxSliceKWarps = 8;

// Sliced K: how many warps divide the inputs of a tile.
inline int slice_k_warps(std::int64_t in) {
  return static_cast<int>(
      std::min<std::int64_t>(kMaxSliceKWarps, ceil_div<std::int64_t>(in, kChunk * kChunks)));
}
template <int kTilesN>
constexpr std::size_t partial_sums_bytes(int warps) {
  return sizeof(float) * static_cast<std::size_t>(warps) * kTileOuts * 8 * kTilesN;
}

template <typename T>
__device__ __forceinline__ void mma_k32(const Vec8& upper, const Vec8& lower, const Vec8& x,
                                        float (&sum)[4]) {
  mma_m16n8k16<T>(sum, {upper.pair[0], lower.pair[0], upper.pair[1], lower.pair[1]}, {x.pair[0], x.pair[1]});
  mma_m16n8k16<T>(sum, {upper.pair[2], lower.pair[2], upper.pair[3], lower.pair[3]}, {x.pair[2], x.pair[3]});
}

// Outputs [first_out, first_out + 16) of w [outs, in] for rows of x: row(i), i < 8 · kTilesN,
// returns a pointer to the row or null if it does not exist; row 0 exists. Calls epilogue(out, i,
// sum) for each existing output and row. The whole block computes one tile: its warps divide the
// inputs. `partial`: shared memory of partial_sums_bytes(). Ends with a barrier.
template <int kTilesN, bool kAligned, typename T, class RowOf, class Epilogue>
__device__ __forceinline__ void gemm_tile(const T* w, int in, int outs, int first_out, const RowOf& row,
                                          float* partial, const Epilogue& epilogue) {
  const int lane = lane_id(), warp = warp_id();
  const int warps = block_warps(), group = lane / 4, quad = lane % 4;
  // Outputs beyond the last repeat it; they are not stored.
  const T* upper_row = w + static_cast<std::int64_t>(min(first_out + group, outs - 1)) * in;
  const T* lower_row = w + static_cast<std::int64_t>(min(first_out + group + 8, outs - 1)) * in;
  const T* x[kTilesN];
#pragma unroll
  for (int c = 0; c < kTilesN; ++c) {
    // Rows beyond the last repeat the first, so that no load depends on a branch; they are not
    // stored either.
    const T* existing = row(8 * c + group);
    x[c] = existing != nullptr ? existing : row(0);
  }

  float sum[kTilesN][4] = {};
  for (int k = warp * kChunk * kChunks; k < in; k += warps * kChunk * kChunks) {
    Vec8 upper[kChunks], lower[kChunks];
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      upper[i] = load8<kAligned>(upper_row, k + i * kChunk + quad * 8, in);
      lower[i] = load8<kAligned>(lower_row, k + i * kChunk + quad * 8, in);
    }
    if constexpr (kAligned && kTilesN <= 2) {
      // Loads of x are in flight too before the first mma waits for its weights.
      Vec8 part[kChunks][kTilesN];
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
#pragma unroll
        for (int c = 0; c < kTilesN; ++c) part[i][c] = load8<kAligned>(x[c], k + i * kChunk + quad * 8, in);
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
#pragma unroll
        for (int c = 0; c < kTilesN; ++c) mma_k32<T>(upper[i], lower[i], part[i][c], sum[c]);
    } else {
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
#pragma unroll
        for (int c = 0; c < kTilesN; ++c)
          mma_k32<T>(upper[i], lower[i], load8<kAligned>(x[c], k + i * kChunk + quad * 8, in), sum[c]);
    }
  }

  constexpr int kRows = 8 * kTilesN;
  float* mine = partial + warp * kTileOuts * kRows;  // [row][out]
#pragma unroll
  for (int c = 0; c < kTilesN; ++c)
#pragma unroll
    for (int i = 0; i < 4; ++i) mine[(8 * c + 2 * quad + i % 2) * kTileOuts + group + i / 2 * 8] = sum[c][i];
  __syncthreads();
  for (int i = thread_id(); i < kTileOuts * kRows; i += block_size()) {
    const int out = first_out + i % kTileOuts, r = i / kTileOuts;
    if (out >= outs || row(r) == nullptr) continue;
    float total = 0;
    for (int other = 0; other < warps; ++other) total += partial[other * kTileOuts * kRows + i];
    epilogue(out, r, total);
  }
  __syncthreads();
}

}  // namespace ptrt::cuda
