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

#include "kernels/cuda/matmul/weight_slice.cuh"

namespace ptrt::cuda {

inline constexpr int kMaxSliceKWarps = 8;

// Sliced K: how many warps divide the inputs of a tile.
inline int slice_k_warps(std::int64_t in) {
  return static_cast<int>(std::min<std::int64_t>(kMaxSliceKWarps, ceil_div<std::int64_t>(in, kSliceInputs)));
}
template <int kTilesN>
constexpr std::size_t partial_sums_bytes(int warps) {
  return sizeof(float) * static_cast<std::size_t>(warps) * kTileOuts * 8 * kTilesN;
}

// A lane's two rows of a tile in global memory: outputs first_out + group and + group + 8. Outputs beyond the last
// repeat it; they are not stored. kAligned: for 16-bit weights as load8() has it; 8-bit rows always are.
template <typename T, typename W, bool kAligned>
struct TileRows {
  using Slice = WeightSlice<T, W>;
  static_assert(std::is_same_v<T, W>);
  const T *upper, *lower;
  int in;

  __device__ __forceinline__ TileRows(const T* w, const void*, int inputs, int outs, int first_out)
      : upper(w + static_cast<std::int64_t>(min(first_out + lane_id() / 4, outs - 1)) * inputs),
        lower(w + static_cast<std::int64_t>(min(first_out + lane_id() / 4 + 8, outs - 1)) * inputs),
        in(inputs) {}
  // Inputs [k, k + kSliceInputs); zeros beyond the last.
  __device__ __forceinline__ void load(Slice& slice, int k) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      slice.upper[i] = load8<kAligned>(upper, k + i * kChunk + lane_id() % 4 * 8, in);
      slice.lower[i] = load8<kAligned>(lower, k + i * kChunk + lane_id() % 4 * 8, in);
    }
  }
};

// Rows of codes, which zeros follow up to row_stride().
template <typename W>
struct CodeRows {
  const W *upper, *lower;
  int stride;

  __device__ __forceinline__ CodeRows(const W* w, int in, int outs, int first_out)
      : stride(static_cast<int>(row_stride<W>(in))) {
    upper = w + static_cast<std::int64_t>(min(first_out + lane_id() / 4, outs - 1)) * stride;
    lower = w + static_cast<std::int64_t>(min(first_out + lane_id() / 4 + 8, outs - 1)) * stride;
  }
  __device__ __forceinline__ void load(CodeSlice<W>& slice, int k) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int at = k + i * kChunk + lane_id() % 4 * 8;
      slice.upper[i] = at < stride ? *reinterpret_cast<const uint2*>(upper + at) : uint2{};
      slice.lower[i] = at < stride ? *reinterpret_cast<const uint2*>(lower + at) : uint2{};
    }
  }
};
template <typename T, bool kAligned>
struct TileRows<T, Float8, kAligned> : CodeRows<Float8> {
  using Slice = WeightSlice<T, Float8>;
  __device__ __forceinline__ TileRows(const Float8* w, const void*, int in, int outs, int first_out)
      : CodeRows<Float8>(w, in, outs, first_out) {}
};
template <typename T, bool kAligned>
struct TileRows<T, Int8, kAligned> : CodeRows<Int8> {
  using Slice = WeightSlice<T, Int8>;
  const unsigned char *upper_scales, *lower_scales;

  __device__ __forceinline__ TileRows(const Int8* w, const void* scales, int in, int outs, int first_out)
      : CodeRows<Int8>(w, in, outs, first_out),
        upper_scales(scales_of(scales, in, min(first_out + lane_id() / 4, outs - 1))),
        lower_scales(scales_of(scales, in, min(first_out + lane_id() / 4 + 8, outs - 1))) {}
  __device__ __forceinline__ void load(Slice& slice, int k) const {
    CodeRows<Int8>::load(slice, k);
    slice.upper_scales = *reinterpret_cast<const uint2*>(upper_scales + k / kScaleInputs * kScaleBlockBytes);
    slice.lower_scales = *reinterpret_cast<const uint2*>(lower_scales + k / kScaleInputs * kScaleBlockBytes);
  }

 private:
  static __device__ __forceinline__ const unsigned char* scales_of(const void* scales, int in, int row) {
    return static_cast<const unsigned char*>(scales) + 2 * scale_index(in, row, 0);
  }
};

// The outputs of `weights`, [first_out, first_out + 16) of `outs`, for rows of x: row(i), i < 8 · kTilesN,
// returns a pointer to the row or null if it does not exist; row 0 exists. Calls epilogue(out, i,
// sum) for each existing output and row; a scale a row of weights is left to it. The whole block computes one tile:
// its warps divide the inputs. `partial`: shared memory of partial_sums_bytes(). Ends with a barrier.
template <int kTilesN, bool kAligned, typename T, typename W, class RowOf, class Epilogue>
__device__ __forceinline__ void gemm_tile(const TileRows<T, W, kAligned>& weights, int in, int outs,
                                          int first_out, const RowOf& row, float* partial,
                                          const Epilogue& epilogue) {
  const int lane = lane_id(), warp = warp_id();
  const int warps = block_warps(), group = lane / 4, quad = lane % 4;
  const T* x[kTilesN];
#pragma unroll
  for (int c = 0; c < kTilesN; ++c) {
    // Rows beyond the last repeat the first, so that no load depends on a branch; they are not
    // stored either.
    const T* existing = row(8 * c + group);
    x[c] = existing != nullptr ? existing : row(0);
  }

  float sum[kTilesN][4] = {};
  for (int k = warp * kSliceInputs; k < in; k += warps * kSliceInputs) {
    WeightSlice<T, W> slice;
    weights.load(slice, k);
    if constexpr (kAligned && kTilesN <= 2) {
      // Loads of x are in flight too before the first mma waits for its weights.
      Vec8 part[kChunks][kTilesN];
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
#pragma unroll
        for (int c = 0; c < kTilesN; ++c) part[i][c] = load8<kAligned>(x[c], k + i * kChunk + quad * 8, in);
#pragma unroll
      for (int i = 0; i < kChunks; ++i) slice.multiply(i, part[i], sum);
    } else {
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        Vec8 part[kTilesN];
#pragma unroll
        for (int c = 0; c < kTilesN; ++c) part[c] = load8<kAligned>(x[c], k + i * kChunk + quad * 8, in);
        slice.multiply(i, part, sum);
      }
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
