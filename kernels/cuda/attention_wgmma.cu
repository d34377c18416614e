#include "kernels/cuda/attention.h"
#include "kernels/cuda/prefill_work.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/wgmma.cuh"

// Prefill attention by warpgroup products: two warpgroups with 64 query vectors each go through the tokens
// they see in tiles of 128, with a running softmax in registers. The scores of a tile are on their way while
// the weights of the one before multiply its values, and the softmax is computed meanwhile; two tiles of keys
// and values take turns in shared memory, filled by cp.async.
namespace ptrt::cuda {
namespace {

constexpr int kGroups = 2;
constexpr int kThreads = 128 * kGroups;
constexpr int kQueries = 64 * kGroups;
constexpr int kTokens = 128;
constexpr int kScores = kTokens / 2;  // of a thread: two rows

// Shared memory: queries, two tiles of keys, two of values, each [kHeadDim / 64][128][64] elements, swizzled.
template <int kHeadDim>
struct SharedTiles {
  static constexpr int kBlock = 128 * 128;  // bytes of 64 columns
  static constexpr int kTile = kBlock * (kHeadDim / kSwizzledColumns);
  static constexpr std::size_t kBytes = 5 * kTile + kSwizzledBytes;  // to align them
  static_assert(kQueries == 128 && kTokens == 128);

  char* memory;
  __device__ __forceinline__ char* queries() const { return memory; }
  __device__ __forceinline__ char* keys(int n) const { return memory + (1 + n % 2) * kTile; }
  __device__ __forceinline__ char* values(int n) const { return memory + (3 + n % 2) * kTile; }
  static __device__ __forceinline__ int place(int row, int column) {
    return column / kSwizzledColumns * kBlock + swizzled_byte(row, column % kSwizzledColumns);
  }
};

template <int kHeadDim>
__device__ __forceinline__ SharedTiles<kHeadDim> shared_tiles() {
  auto* memory = static_cast<char*>(shared_memory());
  const auto over = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(memory) % kSwizzledBytes);
  return {memory + (kSwizzledBytes - over) % kSwizzledBytes};
}

// Starts the copy of the queries; zeros where there is none.
template <int kHeadDim, typename T>
__device__ __forceinline__ void start_queries(const PrefillArgs<T>& args, const Work& work, char* to) {
  constexpr int kParts = kHeadDim / 8;
  const T* q = args.q + work.track * args.q_stride;
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kQueries * kParts; i += kThreads) {
    const int query = i / kParts, at = i % kParts * 8;
    const bool valid = work.there(query);
    copy_async(to + SharedTiles<kHeadDim>::place(query, at), valid ? q + work.offset(args, query) + at : q,
               valid);
  }
}

// The copies of keys and values that a thread starts: of each page of a tile the same sixteen bytes of one
// token.
template <typename T, int kHeadDim>
class TileCopies {
 public:
  // Of tiles from token `first` on.
  __device__ __forceinline__ TileCopies(const PrefillArgs<T>& args, const Work& work, int first)
      : keys_(args.pool.keys(0, work.track, work.kv_head) + token() * kHeadDim + column()),
        values_offset_(args.pool.values_offset),
        page_stride_(static_cast<unsigned>(args.pool.page_stride)),
        pages_(work.pages),
        end_(work.end),
        first_(first) {
    look_up();
  }

  // The keys of the next tile; zeros where there is no token.
  __device__ __forceinline__ void start_keys(char* to) {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) page_[i] = next_page_[i];
    start(keys_, to);
    first_ += kTokens;
    look_up();
  }
  // The values of the tile whose keys were started last; zeros, so that a weight of zero meets no NaN.
  __device__ __forceinline__ void start_values(char* to) {
    first_ -= kTokens;
    start(keys_ + values_offset_, to);
    first_ += kTokens;
  }

 private:
  static constexpr int kParts = kHeadDim / 8;  // threads of a token
  static constexpr int kPagesAtOnce = kThreads / kParts / kTokensOfPage;
  static constexpr int kRounds = kTokens / kTokensOfPage / kPagesAtOnce;
  static_assert(kPagesAtOnce >= 1);

  static __device__ __forceinline__ int thread() {
    return static_cast<int>(threadIdx.x);
  }
  static __device__ __forceinline__ int page_of_thread() {
    return thread() / kParts / kTokensOfPage;
  }
  static __device__ __forceinline__ int token() {
    return thread() / kParts % kTokensOfPage;
  }
  static __device__ __forceinline__ int column() {
    return thread() % kParts * 8;
  }

  // Asks for the pages of the tile to come, long before they are used.
  __device__ __forceinline__ void look_up() {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int page = first_ / kTokensOfPage + i * kPagesAtOnce + page_of_thread();
      next_page_[i] = page * kTokensOfPage < end_ ? pages_[page] : 0;
    }
  }

  __device__ __forceinline__ void start(const T* from, char* to) const {
    to += SharedTiles<kHeadDim>::place(page_of_thread() * kTokensOfPage + token(), column());
    const bool whole = first_ + kTokens <= end_;
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int position = first_ + (i * kPagesAtOnce + page_of_thread()) * kTokensOfPage + token();
      // Rows that are multiples of 8 apart have their pieces exchanged alike.
      copy_async(to + i * kPagesAtOnce * kTokensOfPage * 128,
                 from + static_cast<std::uint64_t>(page_[i]) * page_stride_, whole || position < end_);
    }
  }

  const T* keys_;
  std::int64_t values_offset_;
  unsigned page_stride_;
  const std::int32_t* pages_;
  int end_, first_;
  unsigned page_[kRounds] = {}, next_page_[kRounds] = {};
};

// 2^x; far below zero it is zero.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef PTRT_CUDA_EMULATION
  return std::exp2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// One thread's part of a warpgroup's work: rows `row` and row + 8 of its 64.
template <typename T, int kHeadDim>
struct GroupState {
  using Tiles = SharedTiles<kHeadDim>;
  float scores[kScores];                   // of a tile
  std::uint32_t weights[kTokens / 16][4];  // of the tile before, in pairs, as products take them
  float sums[kHeadDim / 2] = {};           // Σ weight · value
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};  // total: of this lane's columns

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  static __device__ __forceinline__ int query() {
    return static_cast<int>(threadIdx.x) / kWarp * 16 + lane() / 4;
  }

  // Queues scores = q · keysᵀ.
  __device__ __forceinline__ void score(const Tiles& tiles, int n) {
    const char* mine = tiles.queries() + static_cast<int>(threadIdx.x) / 128 * 64 * 128;
    begin_products();
#pragma unroll
    for (int k = 0; k < kHeadDim; k += 16) {
      const int at = k / kSwizzledColumns * Tiles::kBlock + k % kSwizzledColumns * 2;
      product_of_tiles<T>(scores, shared_matrix(mine, 0).at(at), shared_matrix(tiles.keys(n), 0).at(at),
                          k > 0);
    }
    commit_products();
  }

  // Queues sums += weights · values.
  __device__ __forceinline__ void mix(const Tiles& tiles, int n) {
    begin_products();
#pragma unroll
    for (int k = 0; k < kTokens / 16; ++k)
      product_of_rows<T>(sums, weights[k], shared_matrix(tiles.values(n), Tiles::kBlock).at(k * 16 * 128));
    commit_products();
  }

  // Scores become weights, in place; shrink: what earlier sums are multiplied with.
  __device__ __forceinline__ void soften(const PrefillArgs<T>& args, const Work& work, int first, bool masked,
                                         float (&shrink)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (masked) hide(args, work, first, half);
      float seen = largest[half];
#pragma unroll
      for (int j = 0; j < kScores / 4; ++j)
        seen = fmaxf(seen, fmaxf(scores[4 * j + 2 * half], scores[4 * j + 2 * half + 1]));
      seen = warp_max<4>(seen);
      const float base = seen == -INFINITY ? 0.0f : seen * args.scale;  // no token seen so far
      shrink[half] = power_of_two(largest[half] * args.scale - base);
      largest[half] = seen;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kScores / 4; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[4 * j + 2 * half + i];
          score = power_of_two(score * args.scale - base);
          sum += score;
        }
      total[half] = total[half] * shrink[half] + sum;
    }
  }

  __device__ __forceinline__ void hide(const PrefillArgs<T>& args, const Work& work, int first, int half) {
    const int last = work.first_position + work.row_of(query() + 8 * half);
    const int oldest = args.window > 0 ? last - args.window + 1 : 0;
#pragma unroll
    for (int j = 0; j < kScores / 4; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int position = first + j * 8 + lane() % 4 * 2 + i;
        if (position > last || position < oldest) scores[4 * j + 2 * half + i] = -INFINITY;
      }
  }

  __device__ __forceinline__ void take_weights(const float (&shrink)[2]) {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) weights[i / 4][i % 4] = pack<T>(scores[2 * i], scores[2 * i + 1]);
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) sums[i] *= shrink[i / 2 % 2];
    hold(weights);
    hold(sums);
  }

  __device__ __forceinline__ void save(const PrefillArgs<T>& args, const Work& work) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale = 1.0f / warp_sum<4>(total[half]);
      if (!work.there(query() + 8 * half)) continue;
      T* out =
          args.out + work.track * args.out_stride + work.offset(args, query() + 8 * half) + lane() % 4 * 2;
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; ++j)
        *reinterpret_cast<std::uint32_t*>(out + 8 * j) =
            pack<T>(sums[4 * j + 2 * half] * scale, sums[4 * j + 2 * half + 1] * scale);
    }
  }
};

// Grid: x over blocks of queries of the longest segment, y over segments, z over tracks and KV heads.
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1) wide_prefill_kernel(PrefillArgs<T> args) {
  begin_kernel();
  Work work;
  if (!find_work<kQueries>(args, work)) return;
  const auto tiles = shared_tiles<kHeadDim>();
  const int begin = work.begin / kTokens * kTokens, count = ceil_div(work.end - begin, kTokens);
  TileCopies<T, kHeadDim> copies(args, work, begin);
  const auto start_keys = [&](int n) {
    if (n < count) copies.start_keys(tiles.keys(n));
  };
  start_queries<kHeadDim>(args, work, tiles.queries());
  start_keys(0);
  commit_copies();
  copies.start_values(tiles.values(0));
  start_keys(1);
  commit_copies();

  GroupState<T, kHeadDim> state;
  // Rows of this block see all of the tiles but the last ones and, within a window, the first.
  const int all_see = work.first_position + work.row_of(0);
  const int last_row = min(work.row_of(kQueries - 1), work.rows - 1);
  const int none_hides = args.window > 0 ? work.first_position + last_row - args.window + 1 : 0;
  const auto soften = [&](int n, float(&shrink)[2]) {
    const int first = begin + n * kTokens;
    state.soften(args, work, first, first + kTokens - 1 > all_see || first < none_hides, shrink);
  };

  wait_copies<1>();
  show_to_products();
  __syncthreads();
  state.score(tiles, 0);
  wait_products<0>();
  hold(state.scores);
  float shrink[2];
  soften(0, shrink);
  state.take_weights(shrink);
  for (int n = 0; n + 1 < count; ++n) {
    wait_copies<0>();  // keys n + 1 and values n
    show_to_products();
    __syncthreads();  // keys n and values n - 1 have been read
    state.score(tiles, n + 1);
    state.mix(tiles, n);
    copies.start_values(tiles.values(n + 1));
    start_keys(n + 2);
    commit_copies();
    wait_products<1>();
    hold(state.scores);
    soften(n + 1, shrink);
    wait_products<0>();
    hold(state.sums);
    state.take_weights(shrink);
  }
  wait_copies<0>();
  show_to_products();
  __syncthreads();
  state.mix(tiles, count - 1);
  wait_products<0>();
  hold(state.sums);
  state.save(args, work);
}

template <int kHeadDim, typename T>
void launch_wide(const PrefillArgs<T>& args, const AttentionJob& job, const StepInput& step) {
  const std::int64_t vectors = step.longest_segment() * (job.shape.heads / job.shape.kv_heads);
  const dim3 grid(static_cast<unsigned>(ceil_div<std::int64_t>(vectors, kQueries)),
                  static_cast<unsigned>(step.segment_count()),
                  static_cast<unsigned>(job.q.tracks * job.shape.kv_heads));
  launch({"prefill_attention_wgmma", grid, dim3(kThreads), job.stream, SharedTiles<kHeadDim>::kBytes},
         wide_prefill_kernel<T, kHeadDim>, args);
}

}  // namespace

bool wgmma_takes(const AttentionShape& shape) {
  return shape.head_dim == 64 || shape.head_dim == 128;
}

void wgmma_prefill_attention(const AttentionJob& job, const StepInput& step) {
  with_element(job.q.dtype, [&]<typename T>(Element<T>) {
    const PrefillArgs<T> args = prefill_args<T>(job, step);
    if (job.shape.head_dim == 64)
      launch_wide<64>(args, job, step);
    else
      launch_wide<128>(args, job, step);
  });
}

}  // namespace ptrt::cuda
