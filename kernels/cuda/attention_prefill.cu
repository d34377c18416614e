#include "kernels/cuda/attention.h"
#include "kernels/cuda/kv_page.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/reduce.cuh"

// A block takes 64 query vectors of one KV head (rows × heads of its group, heads side by side), 16 a warp,
// and goes through the tokens they see in tiles: scores on tensor cores, a running softmax in registers, the
// weighted values on tensor cores. The next tile of keys and values is on its way while one is computed.
namespace ptrt::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kQueries = 16 * kWarps;
constexpr float kLog2E = 1.4426950408889634f;

struct PrefillArgs {
  const bf16* q;
  bf16* out;
  std::int64_t q_stride, out_stride;  // between tracks
  int heads, kv_heads, head_dim, window;
  float scale;  // log2(e) / sqrt(head_dim): scores for powers of two
  StepView step;
  LayerPool pool;
};

// Tiles in shared memory, rows padded so that eight rows' 16-byte pieces lie in different banks.
template <int kHeadDim>
struct Tiles {
  static constexpr int kTokens = kHeadDim > 128 ? 32 : 64;
  static constexpr int kPitch = kHeadDim + 8;
  static constexpr int kStages = 2;
  static constexpr std::size_t kBytes = sizeof(bf16) * kPitch * (kQueries + 2 * kStages * kTokens);

  bf16* memory;
  __device__ __forceinline__ bf16* q() const { return memory; }
  __device__ __forceinline__ bf16* keys(int stage) const {
    return memory + kPitch * (kQueries + 2 * stage * kTokens);
  }
  __device__ __forceinline__ bf16* values(int stage) const { return keys(stage) + kPitch * kTokens; }
};

// What a block works on.
struct Work {
  int track, kv_head, group;          // group: query heads of the KV head
  int first_row, rows, first_vector;  // of the segment; first_vector: of the block, counted rows · group
  int first_position;                 // of the segment's first row
  int begin, end;                     // tokens that some row of the block sees
  const std::int32_t* pages;          // of the segment's sequence

  __device__ __forceinline__ int row_of(int query) const { return (first_vector + query) / group; }
  __device__ __forceinline__ bool there(int query) const { return row_of(query) < rows; }
  // Start of a query's vector in a tensor [tracks, rows, heads · head_dim].
  __device__ __forceinline__ std::int64_t offset(const PrefillArgs& args, int query) const {
    const int head = kv_head * group + (first_vector + query) % group;
    return (static_cast<std::int64_t>(first_row + row_of(query)) * args.heads + head) * args.head_dim;
  }
};

__device__ __forceinline__ bool find_work(const PrefillArgs& args, Work& work) {
  const Segment segment = args.step.segments[blockIdx.y];
  work.track = static_cast<int>(blockIdx.z) / args.kv_heads;
  work.kv_head = static_cast<int>(blockIdx.z) % args.kv_heads;
  work.group = args.heads / args.kv_heads;
  work.first_row = segment.first_row;
  work.rows = segment.rows;
  // Late rows see the most tokens: they start first.
  work.first_vector = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
  if (work.row_of(0) >= work.rows) return false;
  work.first_position = args.step.positions[segment.first_row];
  work.pages = args.step.page_table + args.step.slots[segment.first_row] * args.step.page_table_stride;
  const int first = work.first_position + work.row_of(0);
  work.begin = args.window > 0 ? max(0, first - args.window + 1) : 0;
  work.end = work.first_position + min(work.row_of(kQueries - 1), work.rows - 1) + 1;
  return true;
}

template <int kHeadDim>
__device__ __forceinline__ void load_queries(const PrefillArgs& args, const Work& work, bf16* to) {
  constexpr int kParts = kHeadDim / 8;
  const bf16* q = args.q + work.track * args.q_stride;
  for (int i = static_cast<int>(threadIdx.x); i < kQueries * kParts; i += kThreads) {
    const int query = i / kParts, at = i % kParts * 8;
    Bf16x8 part = zeros8();
    if (work.there(query)) {
      const bf16* vector = q + work.offset(args, query);
      part = args.head_dim % 8 == 0 ? load8<true>(vector, at, args.head_dim)
                                    : load8<false>(vector, at, args.head_dim);
    }
    *reinterpret_cast<Bf16x8*>(to + query * Tiles<kHeadDim>::kPitch + at) = part;
  }
}

// Starts the copy of the keys and values of tokens [first, first + kTokens); zeros where there is none, so
// that a weight of zero meets no NaN.
template <int kHeadDim>
__device__ __forceinline__ void start_tile(const PrefillArgs& args, const Work& work, int first,
                                           const Tiles<kHeadDim>& tiles, int stage) {
  using Tile = Tiles<kHeadDim>;
  constexpr int kParts = kHeadDim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kTokens * kParts; i += kThreads) {
    const int token = i / kParts, at = i % kParts * 8, position = first + token;
    const bool valid = position < work.end && at < args.head_dim;
    const bf16* from = args.pool.data;
    if (valid) {
      const std::int64_t page = work.pages[position / kTokensOfPage];
      from = args.pool.keys(page, work.track, work.kv_head) + position % kTokensOfPage * args.head_dim + at;
    }
    bf16* key = tiles.keys(stage) + token * Tile::kPitch + at;
    bf16* value = tiles.values(stage) + token * Tile::kPitch + at;
    if (args.head_dim % 8 == 0) {
      copy_async(key, from, valid);
      copy_async(value, valid ? from + args.pool.values_offset : from, valid);
    } else {
      const int width = valid ? args.head_dim - at : 0;
      *reinterpret_cast<Bf16x8*>(key) = load8<false>(from, 0, width);
      *reinterpret_cast<Bf16x8*>(value) = load8<false>(from + args.pool.values_offset, 0, width);
    }
  }
}

// Of two rows (group and group + 8 of the warp's 16): running maximum and sum, the latter of this lane's
// columns.
struct Softmax {
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
};

// s = q · keysᵀ of the warp's 16 queries, for powers of two.
template <int kHeadDim>
__device__ __forceinline__ void score(const PrefillArgs& args, const Tiles<kHeadDim>& tiles, int stage,
                                      float (&s)[Tiles<kHeadDim>::kTokens / 8][4]) {
  using Tile = Tiles<kHeadDim>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const bf16* q = tiles.q() + (warp * 16 + lane % 16) * Tile::kPitch + lane / 16 * 8;
  const bf16* keys = tiles.keys(stage) + (lane % 8 + lane / 16 * 8) * Tile::kPitch + lane / 8 % 2 * 8;
#pragma unroll
  for (auto& quarter : s)
    for (float& score : quarter) score = 0;
#pragma unroll
  for (int k = 0; k < kHeadDim; k += 16) {
    std::uint32_t a[4];
    load_matrices(a, q + k);
#pragma unroll
    for (int n = 0; n < Tile::kTokens / 8; n += 2) {
      std::uint32_t b[4];
      load_matrices(b, keys + n * 8 * Tile::kPitch + k);
      mma_16x8x16(s[n], a, {b[0], b[1]});
      mma_16x8x16(s[n + 1], a, {b[2], b[3]});
    }
  }
#pragma unroll
  for (auto& quarter : s)
    for (float& score : quarter) score *= args.scale;
}

// Hides what a row does not see, turns scores into weights and brings earlier sums to the new maximum.
template <int kHeadDim>
__device__ __forceinline__ void soften(const PrefillArgs& args, const Work& work, int first,
                                       float (&s)[Tiles<kHeadDim>::kTokens / 8][4], Softmax& softmax,
                                       float (&sums)[kHeadDim / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int last = work.first_position + work.row_of(warp * 16 + lane / 4 + 8 * half);
    const int oldest = args.window > 0 ? last - args.window + 1 : 0;
    float largest = softmax.largest[half];
#pragma unroll
    for (int n = 0; n < Tiles<kHeadDim>::kTokens / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int position = first + n * 8 + lane % 4 * 2 + i;
        float& score = s[n][2 * half + i];
        if (position > last || position < oldest) score = -INFINITY;
        largest = fmaxf(largest, score);
      }
    largest = warp_max<4>(largest);
    const float base = largest == -INFINITY ? 0.0f : largest;  // no token seen so far
    const float shrink = exp2f(softmax.largest[half] - base);
    softmax.largest[half] = largest;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < Tiles<kHeadDim>::kTokens / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = s[n][2 * half + i];
        score = exp2f(score - base);
        sum += score;
      }
    softmax.sum[half] = softmax.sum[half] * shrink + sum;
#pragma unroll
    for (auto& quarter : sums) quarter[2 * half] *= shrink, quarter[2 * half + 1] *= shrink;
  }
}

// sums += weights · values.
template <int kHeadDim>
__device__ __forceinline__ void mix(const Tiles<kHeadDim>& tiles, int stage,
                                    const float (&s)[Tiles<kHeadDim>::kTokens / 8][4],
                                    float (&sums)[kHeadDim / 8][4]) {
  using Tile = Tiles<kHeadDim>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bf16* values = tiles.values(stage) + lane % 16 * Tile::kPitch + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < Tile::kTokens / 16; ++k) {
    const float(&low)[4] = s[2 * k];
    const float(&high)[4] = s[2 * k + 1];
    const std::uint32_t a[4] = {pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]),
                                pack(high[2], high[3])};
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; n += 2) {
      std::uint32_t b[4];
      load_matrices_transposed(b, values + k * 16 * Tile::kPitch + n * 8);
      mma_16x8x16(sums[n], a, {b[0], b[1]});
      mma_16x8x16(sums[n + 1], a, {b[2], b[3]});
    }
  }
}

template <int kHeadDim>
__device__ __forceinline__ void save(const PrefillArgs& args, const Work& work, const Softmax& softmax,
                                     const float (&sums)[kHeadDim / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float scale = 1.0f / warp_sum<4>(softmax.sum[half]);
    const int query = warp * 16 + lane / 4 + 8 * half;
    if (!work.there(query)) continue;
    bf16* out = args.out + work.track * args.out_stride + work.offset(args, query);
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      const int at = n * 8 + lane % 4 * 2;
      const float first = sums[n][2 * half] * scale, second = sums[n][2 * half + 1] * scale;
      if (args.head_dim % 2 == 0) {
        if (at < args.head_dim) *reinterpret_cast<std::uint32_t*>(out + at) = pack(first, second);
      } else {
        if (at < args.head_dim) store(out + at, first);
        if (at + 1 < args.head_dim) store(out + at + 1, second);
      }
    }
  }
}

// Grid: x over blocks of queries of the longest segment, y over segments, z over tracks and KV heads.
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads) prefill_kernel(PrefillArgs args) {
  using Tile = Tiles<kHeadDim>;
  Work work;
  if (!find_work(args, work)) return;
  const Tile tiles{static_cast<bf16*>(shared_memory())};
  load_queries<kHeadDim>(args, work, tiles.q());

  float sums[kHeadDim / 8][4] = {};
  Softmax softmax;
  const int begin = work.begin / Tile::kTokens * Tile::kTokens;
  start_tile(args, work, begin, tiles, 0);
  commit_copies();
  int stage = 0;
  for (int first = begin; first < work.end; first += Tile::kTokens, stage ^= 1) {
    if (first + Tile::kTokens < work.end) start_tile(args, work, first + Tile::kTokens, tiles, stage ^ 1);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    float s[Tile::kTokens / 8][4];
    score(args, tiles, stage, s);
    soften<kHeadDim>(args, work, first, s, softmax, sums);
    mix(tiles, stage, s, sums);
    __syncthreads();  // the next round overwrites this stage
  }
  wait_copies<0>();
  save<kHeadDim>(args, work, softmax, sums);
}

template <int kHeadDim>
void launch_prefill(const PrefillArgs& args, const dim3& grid, cudaStream_t stream) {
  launch({"prefill_attention", grid, dim3(kThreads), stream, Tiles<kHeadDim>::kBytes},
         prefill_kernel<kHeadDim>, args);
}

}  // namespace

void prefill_attention(const AttentionJob& job, const StepInput& step) {
  if (step.segment_count() == 0) return;
  const AttentionShape& shape = job.shape;
  const PrefillArgs args{static_cast<const bf16*>(job.q.data),
                         static_cast<bf16*>(job.out.data),
                         job.q.track_stride,
                         job.out.track_stride,
                         static_cast<int>(shape.heads),
                         static_cast<int>(shape.kv_heads),
                         static_cast<int>(shape.head_dim),
                         static_cast<int>(shape.window),
                         kLog2E / sqrtf(static_cast<float>(shape.head_dim)),
                         step.view(),
                         layer_pool(job.pool, job.layer)};
  const std::int64_t vectors = step.longest_segment() * (shape.heads / shape.kv_heads);
  const dim3 grid(static_cast<unsigned>(ceil_div<std::int64_t>(vectors, kQueries)),
                  static_cast<unsigned>(step.segment_count()),
                  static_cast<unsigned>(job.q.tracks * shape.kv_heads));
  if (shape.head_dim <= 64)
    launch_prefill<64>(args, grid, job.stream);
  else if (shape.head_dim <= 80)
    launch_prefill<80>(args, grid, job.stream);
  else if (shape.head_dim <= 96)
    launch_prefill<96>(args, grid, job.stream);
  else if (shape.head_dim <= 128)
    launch_prefill<128>(args, grid, job.stream);
  else
    launch_prefill<256>(args, grid, job.stream);
}

}  // namespace ptrt::cuda
