#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/prefill_work.cuh"
#include "kernels/cuda/base/reduce.cuh"
#include "kernels/cuda/ptx/mma.cuh"

// A block takes query vectors of one KV head (rows × heads of its group, heads side by side), a warp 32 of
// them where registers allow, else 16, and goes through the tokens they see in tiles: scores on tensor cores,
// a running softmax in registers, the weighted values on tensor cores. Keys and values are read from shared
// memory once for all query vectors of a warp; the next tile of them is on its way while one is computed.
namespace ptrt::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;

// Tiles in shared memory, rows padded so that eight rows' 16-byte pieces lie in different banks.
template <typename T, int kHeadDim>
struct Tiles {
  static constexpr int kRowTiles = kHeadDim > 128 ? 1 : 2;  // of 16 query vectors, a warp
  static constexpr int kWarpQueries = 16 * kRowTiles, kQueries = kWarpQueries * kWarps;
  static constexpr int kTokens = kHeadDim > 96 ? 32 : 64;
  static constexpr int kPitch = kHeadDim + 8;
  static constexpr int kStages = 2;
  static constexpr std::size_t kBytes = sizeof(T) * kPitch * (kQueries + 2 * kStages * kTokens);

  T* memory;
  __device__ __forceinline__ T* q() const { return memory; }
  __device__ __forceinline__ T* keys(int stage) const {
    return memory + kPitch * (kQueries + 2 * stage * kTokens);
  }
  __device__ __forceinline__ T* values(int stage) const { return keys(stage) + kPitch * kTokens; }
};

template <int kHeadDim, typename T>
__device__ __forceinline__ void load_queries(const PrefillArgs<T>& args, const Work& work, T* to) {
  constexpr int kParts = kHeadDim / 8, kQueries = Tiles<T, kHeadDim>::kQueries;
  const T* q = args.q + work.track * args.q_stride;
  for (int i = static_cast<int>(threadIdx.x); i < kQueries * kParts; i += kThreads) {
    const int query = i / kParts, at = i % kParts * 8;
    Eight part = zeros8();
    if (work.there(query)) {
      const T* vector = q + work.offset(args, query);
      part = args.head_dim % 8 == 0 ? load8<true>(vector, at, args.head_dim)
                                    : load8<false>(vector, at, args.head_dim);
    }
    *reinterpret_cast<Eight*>(to + query * Tiles<T, kHeadDim>::kPitch + at) = part;
  }
}

// Starts the copy of the keys and values of tokens [first, first + kTokens); zeros where there is none, so
// that a weight of zero meets no NaN.
template <typename T, int kHeadDim>
__device__ __forceinline__ void start_tile(const PrefillArgs<T>& args, const Work& work, int first,
                                           const Tiles<T, kHeadDim>& tiles, int stage) {
  using Tile = Tiles<T, kHeadDim>;
  constexpr int kParts = kHeadDim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kTokens * kParts; i += kThreads) {
    const int token = i / kParts, at = i % kParts * 8, position = first + token;
    const bool valid = position < work.end && at < args.head_dim;
    const T* from = args.pool.data;
    if (valid) {
      const std::int64_t page = work.pages[position / kTokensOfPage];
      from = args.pool.keys(page, work.track, work.kv_head) + position % kTokensOfPage * args.head_dim + at;
    }
    T* key = tiles.keys(stage) + token * Tile::kPitch + at;
    T* value = tiles.values(stage) + token * Tile::kPitch + at;
    if (args.head_dim % 8 == 0) {
      copy_async(key, from, valid);
      copy_async(value, valid ? from + args.pool.values_offset : from, valid);
    } else {
      const int width = valid ? args.head_dim - at : 0;
      *reinterpret_cast<Eight*>(key) = load8<false>(from, 0, width);
      *reinterpret_cast<Eight*>(value) = load8<false>(from + args.pool.values_offset, 0, width);
    }
  }
}

// Of two rows of a row tile (group and group + 8): running maximum and sum, the latter of this lane's
// columns.
struct Softmax {
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
};

// Of one warp: 16 · kRowTiles queries.
template <typename T, int kHeadDim>
struct WarpState {
  using Tile = Tiles<T, kHeadDim>;
  float s[Tile::kRowTiles][Tile::kTokens / 8][4];     // scores of this tile, then weights
  float sums[Tile::kRowTiles][kHeadDim / 8][4] = {};  // Σ weight · value
  Softmax softmax[Tile::kRowTiles];

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  static __device__ __forceinline__ int first_query() {
    return static_cast<int>(threadIdx.x) / kWarp * Tile::kWarpQueries;
  }

  // s = q · keysᵀ
  __device__ __forceinline__ void score(const Tile& tiles, int stage) {
    const T* q = tiles.q() + (first_query() + lane() % 16) * Tile::kPitch + lane() / 16 * 8;
    const T* keys = tiles.keys(stage) + (lane() % 8 + lane() / 16 * 8) * Tile::kPitch + lane() / 8 % 2 * 8;
#pragma unroll
    for (auto& row_tile : s)
#pragma unroll
      for (auto& quarter : row_tile)
#pragma unroll
        for (float& score : quarter) score = 0;
#pragma unroll
    for (int k = 0; k < kHeadDim; k += 16) {
      std::uint32_t a[Tile::kRowTiles][4];
#pragma unroll
      for (int m = 0; m < Tile::kRowTiles; ++m) load_matrices(a[m], q + m * 16 * Tile::kPitch + k);
#pragma unroll
      for (int n = 0; n < Tile::kTokens / 8; n += 2) {
        std::uint32_t b[4];
        load_matrices(b, keys + n * 8 * Tile::kPitch + k);
#pragma unroll
        for (int m = 0; m < Tile::kRowTiles; ++m) {
          mma_16x8x16<T>(s[m][n], a[m], {b[0], b[1]});
          mma_16x8x16<T>(s[m][n + 1], a[m], {b[2], b[3]});
        }
      }
    }
  }

  // Hides what a row does not see, turns scores into weights and brings earlier sums to the new maximum.
  __device__ __forceinline__ void soften(const PrefillArgs<T>& args, const Work& work, int first) {
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int last = work.first_position + work.row_of(first_query() + m * 16 + lane() / 4 + 8 * half);
        const int oldest = args.window > 0 ? last - args.window + 1 : 0;
        float& largest = softmax[m].largest[half];
        const float before = largest;
#pragma unroll
        for (int n = 0; n < Tile::kTokens / 8; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int position = first + n * 8 + lane() % 4 * 2 + i;
            float& score = s[m][n][2 * half + i];
            if (position > last || position < oldest) score = -INFINITY;
            largest = fmaxf(largest, score);
          }
        largest = warp_max<4>(largest);
        const float base = largest == -INFINITY ? 0.0f : largest * args.scale;  // no token seen so far
        const float shrink = exp2f(before * args.scale - base);
        float sum = 0;
#pragma unroll
        for (int n = 0; n < Tile::kTokens / 8; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& score = s[m][n][2 * half + i];
            score = exp2f(score * args.scale - base);
            sum += score;
          }
        softmax[m].sum[half] = softmax[m].sum[half] * shrink + sum;
#pragma unroll
        for (auto& quarter : sums[m]) quarter[2 * half] *= shrink, quarter[2 * half + 1] *= shrink;
      }
  }

  // sums += weights · values.
  __device__ __forceinline__ void mix(const Tile& tiles, int stage) {
    const T* values = tiles.values(stage) + lane() % 16 * Tile::kPitch + lane() / 16 * 8;
#pragma unroll
    for (int k = 0; k < Tile::kTokens / 16; ++k) {
      std::uint32_t a[Tile::kRowTiles][4];
#pragma unroll
      for (int m = 0; m < Tile::kRowTiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[m][i] = pack<T>(s[m][2 * k + i / 2][i % 2 * 2], s[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; n += 2) {
        std::uint32_t b[4];
        load_matrices_transposed(b, values + k * 16 * Tile::kPitch + n * 8);
#pragma unroll
        for (int m = 0; m < Tile::kRowTiles; ++m) {
          mma_16x8x16<T>(sums[m][n], a[m], {b[0], b[1]});
          mma_16x8x16<T>(sums[m][n + 1], a[m], {b[2], b[3]});
        }
      }
    }
  }

  __device__ __forceinline__ void save(const PrefillArgs<T>& args, const Work& work) const {
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float scale = 1.0f / warp_sum<4>(softmax[m].sum[half]);
        const int query = first_query() + m * 16 + lane() / 4 + 8 * half;
        if (work.there(query))
          save_row(args, args.out + work.track * args.out_stride + work.offset(args, query), sums[m], half,
                   scale);
      }
  }
  static __device__ __forceinline__ void save_row(const PrefillArgs<T>& args, T* out,
                                                  const float (&sum)[kHeadDim / 8][4], int half,
                                                  float scale) {
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      const int at = n * 8 + lane() % 4 * 2;
      const float first = sum[n][2 * half] * scale, second = sum[n][2 * half + 1] * scale;
      if (args.head_dim % 2 == 0) {
        if (at < args.head_dim) *reinterpret_cast<std::uint32_t*>(out + at) = pack<T>(first, second);
      } else {
        if (at < args.head_dim) store(out + at, first);
        if (at + 1 < args.head_dim) store(out + at + 1, second);
      }
    }
  }
};

// Grid: x over blocks of queries of the longest segment, y over segments, z over tracks and KV heads.
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads) prefill_kernel(PrefillArgs<T> args) {
  begin_kernel();
  using Tile = Tiles<T, kHeadDim>;
  Work work;
  if (!find_work<Tile::kQueries>(args, work)) return;
  const Tile tiles{static_cast<T*>(shared_memory())};
  load_queries<kHeadDim>(args, work, tiles.q());

  WarpState<T, kHeadDim> state;
  const int begin = work.begin / Tile::kTokens * Tile::kTokens;
  start_tile(args, work, begin, tiles, 0);
  commit_copies();
  int stage = 0;
  for (int first = begin; first < work.end; first += Tile::kTokens, stage ^= 1) {
    if (first + Tile::kTokens < work.end) start_tile(args, work, first + Tile::kTokens, tiles, stage ^ 1);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    state.score(tiles, stage);
    state.soften(args, work, first);
    state.mix(tiles, stage);
    __syncthreads();  // the next round overwrites this stage
  }
  wait_copies<0>();
  state.save(args, work);
}

template <int kHeadDim, typename T>
void launch_prefill(const PrefillArgs<T>& args, std::int64_t vectors, dim3 grid, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(ceil_div<std::int64_t>(vectors, Tiles<T, kHeadDim>::kQueries));
  launch(
      {"prefill_attention", dim3(blocks, grid.y, grid.z), dim3(kThreads), stream, Tiles<T, kHeadDim>::kBytes},
      prefill_kernel<T, kHeadDim>, args);
}

template <typename T>
void launch_kernel(const AttentionJob& job, const StepInput& step) {
  const AttentionShape& shape = job.shape;
  const PrefillArgs<T> args = prefill_args<T>(job, step);
  const std::int64_t vectors = step.longest_segment() * (shape.heads / shape.kv_heads);
  const dim3 grid(1, static_cast<unsigned>(step.segment_count()),
                  static_cast<unsigned>(job.q.tracks * shape.kv_heads));
  if (shape.head_dim <= 64)
    launch_prefill<64>(args, vectors, grid, job.stream);
  else if (shape.head_dim <= 80)
    launch_prefill<80>(args, vectors, grid, job.stream);
  else if (shape.head_dim <= 96)
    launch_prefill<96>(args, vectors, grid, job.stream);
  else if (shape.head_dim <= 128)
    launch_prefill<128>(args, vectors, grid, job.stream);
  else
    launch_prefill<256>(args, vectors, grid, job.stream);
}

}  // namespace

void prefill_attention(const AttentionJob& job, const StepInput& step) {
  if (step.segment_count() == 0) return;
#ifdef PTRT_HAS_WGMMA
  if (device_traits().has_wgmma && wgmma_takes(job.shape)) return wgmma_prefill_attention(job, step);
#endif
  with_element(job.q.dtype, [&]<typename T>(Element<T>) { launch_kernel<T>(job, step); });
}

}  // namespace ptrt::cuda
