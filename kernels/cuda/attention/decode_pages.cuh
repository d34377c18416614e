// Decode attention within a warp: pages of keys and values on their way through a ring of stages in shared
// memory, and what is done with a page.
#pragma once

#include "kernels/cuda/base/reduce.cuh"
#include "kernels/cuda/matmul/matmul_tile.cuh"
#include "kernels/cuda/ops/kv_page.cuh"

namespace ptrt::cuda {

static_assert(kTokensOfPage == 16, "rows of the tensor-core product");
inline constexpr int kHeads = 8;  // query heads a warp takes at once: the product's columns

// One page of one head in shared memory: keys [16][kKeyPitch], values [16][kValuePitch]. Rows are padded by
// sixteen bytes, so that the rows that a quarter of a warp reads at once lie in different banks, or two in
// one.
template <typename T, int kChunks>
struct PageStage {
  static constexpr int kHalves = (kChunks + 1) / 2;
  static constexpr int kKeyPitch = 32 * kChunks + 8, kValuePitch = 64 * kHalves + 8;
  static constexpr int kElements = kTokensOfPage * (kKeyPitch + kValuePitch);
  static constexpr std::size_t kBytes = sizeof(T) * kElements;

  T* memory;
  __device__ __forceinline__ T* keys() const { return memory; }
  __device__ __forceinline__ T* values() const { return memory + kTokensOfPage * kKeyPitch; }
  __device__ __forceinline__ Eight key(int token, int at) const {
    return *reinterpret_cast<const Eight*>(keys() + token * kKeyPitch + at);
  }
  __device__ __forceinline__ Eight value(int token, int at) const {
    return *reinterpret_cast<const Eight*>(values() + token * kValuePitch + at);
  }

  // Starts the copy of tokens [begin, end) by one warp; zeros stand for the others, whose weights are zero. A
  // head_dim that is no multiple of 8 is copied at once, element by element.
  template <bool kWhole>
  __device__ __forceinline__ void fill(const T* from_keys, const T* from_values, int begin, int end,
                                       int head_dim) const {
    fill_rows<kWhole, 4 * kChunks>(keys(), kKeyPitch, from_keys, begin, end, head_dim);
    fill_rows<kWhole, 8 * kHalves>(values(), kValuePitch, from_values, begin, end, head_dim);
  }

 private:
  template <bool kWhole, int kPieces>
  static __device__ __forceinline__ void fill_rows(T* to, int pitch, const T* from, int begin, int end,
                                                   int head_dim) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    constexpr int kRounds = kTokensOfPage * kPieces / kWarp;
#pragma unroll(kRounds > 8 ? 4 : kRounds)  // addresses take registers
    for (int i = 0; i < kRounds; ++i) {
      const int token = (lane + i * kWarp) / kPieces, at = (lane + i * kWarp) % kPieces * 8;
      const bool valid = token >= begin && token < end && at < head_dim;
      const T* row = from + token * head_dim;
      if constexpr (kWhole)
        copy_async(to + token * pitch + at, valid ? row + at : from, valid);
      else
        *reinterpret_cast<Eight*>(to + token * pitch + at) = load8<false>(row, at, valid ? head_dim : 0);
    }
  }
};

// A warp's share of a split, for up to kHeads query heads of one KV head: it takes a page of keys and values
// at a time from its stages into tensor-core fragments, with a running softmax.
//
// Scores are keys (16 tokens) times queries (8 heads), as in matmul_tile.cuh; a lane then has, of heads 2 ·
// quad and 2 · quad + 1, the tokens `group` and `group` + 8. Sums are values (16 elements of 16 tokens) times
// weights (16 tokens of 8 heads): of each token a lane loads elements 64 · half + 8 · group … + 7, and the
// j-th product of a half has elements 2 · j and 2 · j + 1 of each eight as its rows `group` and `group` + 8.
template <typename T, int kChunks, bool kWhole>
class WarpAttention {
 public:
  static constexpr int kHalves = (kChunks + 1) / 2, kPitch = 64 * kHalves;

  __device__ __forceinline__ WarpAttention(const T* q, int heads, int head_dim, float scale) : scale_(scale) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
      q_[c] =
          group() < heads ? load8<kWhole>(q + group() * head_dim, c * 32 + quad() * 8, head_dim) : zeros8();
  }

  // Tokens [begin, end) of the page in `stage`, at least one.
  __device__ __forceinline__ void take_page(const PageStage<T, kChunks>& stage, int begin, int end) {
    float s[4] = {};
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int at = c * 32 + quad() * 8;
      multiply<T>(stage.key(group(), at), stage.key(group() + 8, at), q_[c], s);
    }
    soften(begin, end, s);
    mix(stage, s);
  }

  // sums [kHeads][kPitch], and of each head the largest score and Σ p.
  __device__ __forceinline__ void save(float* sums, float2* statistics) {
    float* mine = sums + 2 * quad() * kPitch + 8 * group();
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float(&d)[4] = sum_[half][j];
        *reinterpret_cast<float2*>(mine + 64 * half + 2 * j) = make_float2(d[0], d[2]);
        *reinterpret_cast<float2*>(mine + kPitch + 64 * half + 2 * j) = make_float2(d[1], d[3]);
      }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float total = over_groups(total_[h], [](float a, float b) { return a + b; });
      if (group() == 0) statistics[2 * quad() + h] = make_float2(largest_[h], total);
    }
  }

 private:
  static __device__ __forceinline__ int lane() {
    return static_cast<int>(threadIdx.x) % kWarp;
  }
  static __device__ __forceinline__ int group() {
    return lane() / 4;
  }
  static __device__ __forceinline__ int quad() {
    return lane() % 4;
  }
  static __device__ __forceinline__ std::uint32_t low_halves(std::uint32_t a, std::uint32_t b) {
    return (a & 0xFFFFu) | b << 16;
  }
  static __device__ __forceinline__ std::uint32_t high_halves(std::uint32_t a, std::uint32_t b) {
    return a >> 16 | (b & 0xFFFF0000u);
  }
  template <class Combine>
  static __device__ __forceinline__ float over_groups(float x, const Combine& combine) {
#pragma unroll
    for (int distance = 4; distance < kWarp; distance *= 2)
      x = combine(x, __shfl_xor_sync(kAllLanes, x, distance));
    return x;
  }

  // Scores become weights e^(score − largest); earlier sums are brought to the new maximum.
  __device__ __forceinline__ void soften(int begin, int end, float (&s)[4]) {
    const bool first = group() >= begin && group() < end, second = group() + 8 >= begin && group() + 8 < end;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      s[h] = first ? s[h] * scale_ : -INFINITY;
      s[2 + h] = second ? s[2 + h] * scale_ : -INFINITY;
      const float seen = over_groups(fmaxf(s[h], s[2 + h]), [](float a, float b) { return fmaxf(a, b); });
      const float largest = fmaxf(largest_[h], seen);
      const float shrink = exp2f(largest_[h] - largest);
      largest_[h] = largest;
      s[h] = exp2f(s[h] - largest);
      s[2 + h] = exp2f(s[2 + h] - largest);
      total_[h] = total_[h] * shrink + (s[h] + s[2 + h]);
#pragma unroll
      for (auto& half : sum_)
#pragma unroll
        for (auto& d : half) d[h] *= shrink, d[2 + h] *= shrink;
    }
  }

  __device__ __forceinline__ void mix(const PageStage<T, kChunks>& stage, const float (&weight)[4]) {
    // As the product's right factor a lane has tokens 2 · quad, 2 · quad + 1 and the same + 8 of head
    // `group`.
    const int from = 8 * quad() + group() / 2;
    std::uint32_t b[2];
#pragma unroll
    for (int eight = 0; eight < 2; ++eight) {
      const std::uint32_t mine = pack<T>(weight[2 * eight], weight[2 * eight + 1]);
      const std::uint32_t even = __shfl_sync(kAllLanes, mine, from),
                          odd = __shfl_sync(kAllLanes, mine, from + 4);
      b[eight] = group() % 2 == 0 ? low_halves(even, odd) : high_halves(even, odd);
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      Eight v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = stage.value(2 * quad() + i % 2 + i / 2 * 8, 64 * half + 8 * group());
#pragma unroll
      for (int j = 0; j < 4; ++j)
        mma_16x8x16<T>(sum_[half][j],
                       {low_halves(v[0].pair[j], v[1].pair[j]), high_halves(v[0].pair[j], v[1].pair[j]),
                        low_halves(v[2].pair[j], v[3].pair[j]), high_halves(v[2].pair[j], v[3].pair[j])},
                       {b[0], b[1]});
    }
  }

  float scale_;  // log2(e) / sqrt(head_dim): scores for powers of two
  Eight q_[kChunks];
  float largest_[2] = {-INFINITY, -INFINITY}, total_[2] = {0, 0};  // total_: of this lane's tokens
  float sum_[kHalves][4][4] = {};
};

}  // namespace ptrt::cuda
