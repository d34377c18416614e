// Decode attention of one warp: a page of keys and values in shared memory, and the online softmax
// over pages.
#pragma once

#include "kernels/cuda/base/reduce.cuh"
#include "kernels/cuda/matmul/gemm_tile.cuh"
#include "kernels/cuda/ops/kv_page.cuh"
#include "kernels/cuda/ptx/cp_async.cuh"

namespace ptrt::cuda {

static_assert(kPageSize == 16, "the rows of an mma");
inline constexpr int kHeads = 8;  // query heads that a warp computes at once: the columns of an mma

// One page of one head in shared memory: keys [16][kKeyPitch], values [16][kValuePitch]. Rows are
// padded by sixteen bytes, so that the rows that a quarter of a warp reads at once conflict at most
// two to a bank.
template <typename T, int kChunks>
struct PageStage {
  static constexpr int kHalves = (kChunks + 1) / 2;
  static constexpr int kKeyPitch = 32 * kChunks + 8, kValuePitch = 64 * kHalves + 8;
  static constexpr int kElements = kPageSize * (kKeyPitch + kValuePitch);
  static constexpr std::size_t kBytes = sizeof(T) * kElements;

  T* memory;
  __device__ __forceinline__ T* keys() const { return memory; }
  __device__ __forceinline__ T* values() const { return memory + kPageSize * kKeyPitch; }
  __device__ __forceinline__ Vec8 key(int token, int at) const {
    return *reinterpret_cast<const Vec8*>(keys() + token * kKeyPitch + at);
  }
  __device__ __forceinline__ Vec8 value(int token, int at) const {
    return *reinterpret_cast<const Vec8*>(values() + token * kValuePitch + at);
  }

  // Starts the copy of tokens [begin, end) by one warp; other rows become zeros, since their P is
  // zero. Without kAligned (head_dim is not a multiple of 8) the copy is synchronous and by
  // element.
  template <bool kAligned>
  __device__ __forceinline__ void load(const T* from_keys, const T* from_values, int begin, int end,
                                       int head_dim) const {
    load_rows<kAligned, 4 * kChunks>(keys(), kKeyPitch, from_keys, begin, end, head_dim);
    load_rows<kAligned, 8 * kHalves>(values(), kValuePitch, from_values, begin, end, head_dim);
  }

 private:
  template <bool kAligned, int kPieces>
  static __device__ __forceinline__ void load_rows(T* to, int pitch, const T* from, int begin, int end,
                                                   int head_dim) {
    const int lane = lane_id();
    constexpr int kIterations = kPageSize * kPieces / kWarpSize;
#pragma unroll(kIterations <= 8 ? kIterations : kAligned ? 4 : 2)  // addresses take registers
    for (int i = 0; i < kIterations; ++i) {
      const int token = (lane + i * kWarpSize) / kPieces, at = (lane + i * kWarpSize) % kPieces * 8;
      const bool valid = token >= begin && token < end && at < head_dim;
      const T* row = from + token * head_dim;
      if constexpr (kAligned)
        cp_async_zfill(to + token * pitch + at, valid ? row + at : from, valid);
      else
        *reinterpret_cast<Vec8*>(to + token * pitch + at) = load8<false>(row, at, valid ? head_dim : 0);
    }
  }
};

// The attention of a warp's pages of a split, for up to kHeads query heads of one KV head.
//
// Scores are keys (16 tokens) times queries (8 heads), with the fragments of gemm_tile.cuh: a lane
// holds tokens `group` and `group` + 8 of heads 2 · quad and 2 · quad + 1. The output accumulates
// values (16 elements × 16 tokens) times P (16 tokens × 8 heads). Of each token a lane loads
// elements 64 · half + 8 · group … + 7; the j-th mma of a half has elements 2 · j and 2 · j + 1 of
// each eight as its rows `group` and `group` + 8.
template <typename T, int kChunks, bool kAligned>
class WarpAttention {
 public:
  static constexpr int kHalves = (kChunks + 1) / 2, kPitch = 64 * kHalves;

  __device__ __forceinline__ WarpAttention(const T* q, int heads, int head_dim, float scale) : scale_(scale) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
      q_[c] =
          group() < heads ? load8<kAligned>(q + group() * head_dim, c * 32 + quad() * 8, head_dim) : zeros8();
  }

  // Tokens [begin, end) of the page in `stage`, at least one.
  __device__ __forceinline__ void process_page(const PageStage<T, kChunks>& stage, int begin, int end) {
    float p[4] = {};
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int at = c * 32 + quad() * 8;
      mma_k32<T>(stage.key(group(), at), stage.key(group() + 8, at), q_[c], p);
    }
    update_softmax(begin, end, p);
    accumulate_pv(stage, p);
  }

  // Writes Σ P·V to `out` [kHeads][kPitch], and the maximum and Σ P of each head to
  // `softmax_stats`.
  __device__ __forceinline__ void store_output(float* out, float2* softmax_stats) {
    float* mine = out + 2 * quad() * kPitch + 8 * group();
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float(&d)[4] = acc_o_[half][j];
        *reinterpret_cast<float2*>(mine + 64 * half + 2 * j) = make_float2(d[0], d[2]);
        *reinterpret_cast<float2*>(mine + kPitch + 64 * half + 2 * j) = make_float2(d[1], d[3]);
      }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float sum = reduce_groups(row_sum_[h], [](float a, float b) { return a + b; });
      if (group() == 0) softmax_stats[2 * quad() + h] = make_float2(row_max_[h], sum);
    }
  }

 private:
  static __device__ __forceinline__ int group() {
    return lane_id() / 4;
  }
  static __device__ __forceinline__ int quad() {
    return lane_id() % 4;
  }
  static __device__ __forceinline__ std::uint32_t low_halves(std::uint32_t a, std::uint32_t b) {
    return (a & 0xFFFFu) | b << 16;
  }
  static __device__ __forceinline__ std::uint32_t high_halves(std::uint32_t a, std::uint32_t b) {
    return a >> 16 | (b & 0xFFFF0000u);
  }
  // Over the lanes with the same `quad`.
  template <class Combine>
  static __device__ __forceinline__ float reduce_groups(float x, const Combine& combine) {
#pragma unroll
    for (int distance = 4; distance < kWarpSize; distance *= 2)
      x = combine(x, __shfl_xor_sync(kAllLanes, x, distance));
    return x;
  }

  // Replaces scores by P = 2^(score · scale − row_max) and rescales the output to the new maximum.
  __device__ __forceinline__ void update_softmax(int begin, int end, float (&s)[4]) {
    const bool first = group() >= begin && group() < end, second = group() + 8 >= begin && group() + 8 < end;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      s[h] = first ? s[h] * scale_ : -INFINITY;
      s[2 + h] = second ? s[2 + h] * scale_ : -INFINITY;
      const float page_max =
          reduce_groups(fmaxf(s[h], s[2 + h]), [](float a, float b) { return fmaxf(a, b); });
      const float new_max = fmaxf(row_max_[h], page_max);
      const float rescale = exp2f(row_max_[h] - new_max);
      row_max_[h] = new_max;
      s[h] = exp2f(s[h] - new_max);
      s[2 + h] = exp2f(s[2 + h] - new_max);
      row_sum_[h] = row_sum_[h] * rescale + (s[h] + s[2 + h]);
#pragma unroll
      for (auto& half : acc_o_)
#pragma unroll
        for (auto& d : half) d[h] *= rescale, d[2 + h] *= rescale;
    }
  }

  // acc_o += values · P.
  __device__ __forceinline__ void accumulate_pv(const PageStage<T, kChunks>& stage, const float (&p)[4]) {
    // Transposes P: as the right factor a lane holds tokens 2 · quad, 2 · quad + 1 and the same + 8
    // of head `group`.
    const int from = 8 * quad() + group() / 2;
    std::uint32_t b[2];
#pragma unroll
    for (int eight = 0; eight < 2; ++eight) {
      const std::uint32_t mine = pack<T>(p[2 * eight], p[2 * eight + 1]);
      const std::uint32_t even = __shfl_sync(kAllLanes, mine, from),
                          odd = __shfl_sync(kAllLanes, mine, from + 4);
      b[eight] = group() % 2 == 0 ? low_halves(even, odd) : high_halves(even, odd);
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      Vec8 v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = stage.value(2 * quad() + i % 2 + i / 2 * 8, 64 * half + 8 * group());
#pragma unroll
      for (int j = 0; j < 4; ++j)
        mma_m16n8k16<T>(acc_o_[half][j],
                        {low_halves(v[0].pair[j], v[1].pair[j]), high_halves(v[0].pair[j], v[1].pair[j]),
                         low_halves(v[2].pair[j], v[3].pair[j]), high_halves(v[2].pair[j], v[3].pair[j])},
                        {b[0], b[1]});
    }
  }

  float scale_;  // of DecodeArgs
  Vec8 q_[kChunks];
  float row_max_[2] = {-INFINITY, -INFINITY}, row_sum_[2] = {0, 0};  // row_sum_: over this lane's tokens
  float acc_o_[kHalves][4][4] = {};
};

// 2^(a part's maximum − the maximum of all). A part without tokens has none, nor perhaps have all of a block.
__device__ __forceinline__ float weight_of(float part_max, float row_max) {
  return part_max == -INFINITY ? 0.0f : exp2f(part_max - row_max);
}

}  // namespace ptrt::cuda
