// A lane's share of a slice of weights, 16 rows × 128 inputs, as factors of mma (gemm_tile.cuh). Weights of
// 8 bits become elements of the activation type T in registers, exactly: both types hold every int8 and every
// e4m3 value. Their scales come later: float8's, one a row, in the epilogue; int8's when a group of 32 inputs,
// summed in fragments of its own, is added to the sum.
//
// In shared memory a row is 128 elements in pieces of 16 bytes. The pieces of rows that are read at once (two rows
// of 16-bit elements by a quarter of a warp, four rows of 8-bit ones by half a warp) are exchanged so that they lie
// in different banks. int8 has its two blocks of scales (weight_layout.h) behind the rows.
#pragma once

#include "kernels/cuda/base/dtypes.cuh"
#include "kernels/cuda/host/weight_layout.h"
#include "kernels/cuda/ptx/half_pairs.cuh"
#include "kernels/cuda/ptx/mma.cuh"

namespace ptrt::cuda {

inline constexpr int kTileOuts = 16;
inline constexpr int kChunk = 32;  // inputs of two mmas
inline constexpr int kChunks = 4;  // loaded at once by a warp
inline constexpr int kSliceInputs = kChunk * kChunks;
static_assert(kSliceInputs == kScaleInputs && kChunk == kInt8Group);

template <typename W>
inline constexpr int kPieces = static_cast<int>(sizeof(W)) * kSliceInputs / 16;  // of a row
template <typename W>
inline constexpr int kRowsAtOnce = kWarpSize / kPieces<W>;  // that a warp copies
template <typename W>
inline constexpr int kSliceBytes = static_cast<int>(sizeof(W)) * kTileOuts* kSliceInputs;
template <typename W>
inline constexpr int kStageBytes = kSliceBytes<W> +
                                   (std::is_same_v<W, Int8> ? kTileOuts / kScaleRows * kScaleBlockBytes : 0);

// Byte offset of a piece within its row; `row` may be any row of the same remainder by kRowsAtOnce.
template <typename W>
__device__ __forceinline__ int swizzle(int row, int piece) {
  return (piece ^ row % kRowsAtOnce<W> * (8 / kRowsAtOnce<W>)) * 16;
}

// Codes 0 and 1 (`second` = 0) or 2 and 3 of four, as elements of T.
//
// int8: as the low byte of a number with the bits of 128 (bfloat16) or 1024 (float16), whose last place is then 1, q
// without its sign adds q mod 128, and the sign alone adds 128. Their difference is q.
template <typename T>
__device__ __forceinline__ std::uint32_t widen_pair(Int8, std::uint32_t codes, int second) {
  constexpr std::uint32_t kHighBytes = std::is_same_v<T, f16> ? 0x64646464u : 0x43434343u;
  const std::uint32_t spread = __byte_perm(codes, kHighBytes, second == 0 ? 0x4140u : 0x4342u);
  return subtract_pairs<T>(spread & 0xFF7FFF7Fu, spread & 0xFF80FF80u);
}
// float8: exponent and fraction moved to their places give the value times a power of two, the difference of the
// biases (7 to 15 or 127), subnormal ones too.
template <typename T>
__device__ __forceinline__ std::uint32_t widen_pair(Float8, std::uint32_t codes, int second) {
  constexpr bool kHalf = std::is_same_v<T, f16>;
  constexpr int kMove = kHalf ? 1 : 4;
  constexpr std::uint32_t kPlaces = (0x7F00u >> kMove) * 0x10001u;
  constexpr std::uint32_t kScale = kHalf ? 0x5C005C00u : 0x7B807B80u;  // 2^8, 2^120
  const std::uint32_t high = __byte_perm(codes, 0, second == 0 ? 0x1404u : 0x3424u);
  return multiply_pairs<T>((high & 0x80008000u) | (high >> kMove & kPlaces), kScale);
}
template <typename T, typename W>
__device__ __forceinline__ Vec8 widen(uint2 codes) {
  return {{widen_pair<T>(W{}, codes.x, 0), widen_pair<T>(W{}, codes.x, 1), widen_pair<T>(W{}, codes.y, 0),
           widen_pair<T>(W{}, codes.y, 1)}};
}

template <typename T>
__device__ __forceinline__ void mma_k32(const Vec8& upper, const Vec8& lower, const Vec8& x,
                                        float (&sum)[4]) {
  mma_m16n8k16<T>(sum, {upper.pair[0], lower.pair[0], upper.pair[1], lower.pair[1]}, {x.pair[0], x.pair[1]});
  mma_m16n8k16<T>(sum, {upper.pair[2], lower.pair[2], upper.pair[3], lower.pair[3]}, {x.pair[2], x.pair[3]});
}

template <typename T>
__device__ __forceinline__ void mma_k32_first(const Vec8& upper, const Vec8& lower, const Vec8& x,
                                              float (&sum)[4]) {
  mma_m16n8k16_first<T>(sum, {upper.pair[0], lower.pair[0], upper.pair[1], lower.pair[1]},
                        {x.pair[0], x.pair[1]});
  mma_m16n8k16<T>(sum, {upper.pair[2], lower.pair[2], upper.pair[3], lower.pair[3]}, {x.pair[2], x.pair[3]});
}

// load(): from a stage. multiply(): adds the products of chunk i with 8 · kTilesN rows of x.
template <typename T, typename W>
struct WeightSlice {
  static_assert(std::is_same_v<T, W>);
  Vec8 upper[kChunks], lower[kChunks];

  __device__ __forceinline__ void load(const unsigned char* stage) {
    const int group = lane_id() / 4, quad = lane_id() % 4;
    const unsigned char* row = stage + group * kPieces<W> * 16;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int piece = swizzle<W>(group, 4 * i + quad);
      upper[i] = *reinterpret_cast<const Vec8*>(row + piece);
      lower[i] = *reinterpret_cast<const Vec8*>(row + 8 * kPieces<W> * 16 + piece);
    }
  }
  template <int kTilesN>
  __device__ __forceinline__ void multiply(int i, const Vec8 (&x)[kTilesN], float (&sum)[kTilesN][4]) const {
#pragma unroll
    for (int c = 0; c < kTilesN; ++c) mma_k32<T>(upper[i], lower[i], x[c], sum[c]);
  }
};

template <typename W>
struct CodeSlice {
  uint2 upper[kChunks], lower[kChunks];

  __device__ __forceinline__ void load(const unsigned char* stage) {
    const int group = lane_id() / 4, quad = lane_id() % 4;
    const unsigned char* row = stage + group * kPieces<W> * 16 + quad % 2 * 8;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int piece = swizzle<W>(group, 2 * i + quad / 2);
      upper[i] = *reinterpret_cast<const uint2*>(row + piece);
      lower[i] = *reinterpret_cast<const uint2*>(row + 8 * kPieces<W> * 16 + piece);
    }
  }
};

template <typename T>
struct WeightSlice<T, Float8> : CodeSlice<Float8> {
  template <int kTilesN>
  __device__ __forceinline__ void multiply(int i, const Vec8 (&x)[kTilesN], float (&sum)[kTilesN][4]) const {
    const Vec8 wide_upper = widen<T, Float8>(this->upper[i]), wide_lower = widen<T, Float8>(this->lower[i]);
#pragma unroll
    for (int c = 0; c < kTilesN; ++c) mma_k32<T>(wide_upper, wide_lower, x[c], sum[c]);
  }
};

template <typename T>
struct WeightSlice<T, Int8> : CodeSlice<Int8> {
  uint2 upper_scales, lower_scales;  // of four chunks

  __device__ __forceinline__ void load(const unsigned char* stage) {
    CodeSlice<Int8>::load(stage);
    const auto* scales = reinterpret_cast<const uint2*>(stage + kSliceBytes<Int8>) + lane_id() / 4;
    upper_scales = scales[0];
    lower_scales = scales[kScaleRows];
  }
  template <int kTilesN>
  __device__ __forceinline__ void multiply(int i, const Vec8 (&x)[kTilesN], float (&sum)[kTilesN][4]) const {
    const Vec8 wide_upper = widen<T, Int8>(this->upper[i]), wide_lower = widen<T, Int8>(this->lower[i]);
    const float scale[2] = {scale_of(upper_scales, i), scale_of(lower_scales, i)};
#pragma unroll
    for (int c = 0; c < kTilesN; ++c) {
      float of_group[4];
      mma_k32_first<T>(wide_upper, wide_lower, x[c], of_group);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[c][j] += scale[j / 2] * of_group[j];
    }
  }

 private:
  static __device__ __forceinline__ float scale_of(const uint2& scales, int i) {
    const std::uint32_t pair = i < 2 ? scales.x : scales.y;
    return __half2float(__ushort_as_half(static_cast<unsigned short>(i % 2 == 0 ? pair : pair >> 16)));
  }
};

}  // namespace ptrt::cuda
