#include "kernels/cuda/attention/prefill_copies.cuh"
#include "kernels/cuda/base/reduce.cuh"

// Prefill attention by warpgroup products. Two warpgroups with 64 query vectors each go through the tokens
// they see in tiles of 128, with a running softmax in registers; four more warps copy keys and values, two
// tiles of each in turns. A warpgroup queues the scores of a tile and, behind them, the product of the
// weights of the tile before with its values; the softmax is computed while that runs, and while the other
// warpgroup, whose turn it then is, has the tensor cores (Shah et al., FlashAttention-3, section 3).
namespace ptrt::cuda {
namespace {

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

// A warpgroup's work, turn by turn with the other's.
template <typename T, int kHeadDim>
class Consumer {
 public:
  using Tiles = SharedTiles<kHeadDim>;

  __device__ __forceinline__ Consumer(const PrefillArgs<T>& args, const Work& work, const Tiles& tiles,
                                      int first, int count)
      : args_(args), work_(work), tiles_(tiles), first_(first), count_(count) {
    // All rows of this block see the tokens between these.
    const int last_row = min(work.row_of(kQueries - 1), work.rows - 1);
    all_see_ = work.first_position + work.row_of(0);
    none_hides_ = args.window > 0 ? work.first_position + last_row - args.window + 1 : 0;
  }

  __device__ __forceinline__ void run() {
    if (group() == 1) named_barrier_arrive(Barriers::turn(0), Barriers::kTurn);
    await(Tile::keys, 0);
    take_turn();
    state_.score(tiles_, 0);
    pass_turn(true);
    wait_products<0>();
    hold(state_.scores);
    has_read(Tile::keys, 0);
    float shrink[2];
    soften(0, shrink);
    state_.take_weights(shrink);
    for (int n = 0; n + 1 < count_; ++n) {
      await(Tile::keys, n + 1);
      await(Tile::values, n);
      take_turn();
      state_.score(tiles_, n + 1);
      state_.mix(tiles_, n);
      pass_turn(true);
      wait_products<1>();
      hold(state_.scores);
      has_read(Tile::keys, n + 1);
      soften(n + 1, shrink);
      wait_products<0>();
      hold(state_.sums);
      has_read(Tile::values, n);
      state_.take_weights(shrink);
    }
    await(Tile::values, count_ - 1);
    take_turn();
    state_.mix(tiles_, count_ - 1);
    pass_turn(group() == 0);  // the other's last is the last of all
    wait_products<0>();
    hold(state_.sums);
    state_.save(args_, work_);
  }

 private:
  static __device__ __forceinline__ int group() { return static_cast<int>(threadIdx.x) / 128; }
  __device__ __forceinline__ void await(Tile tile, int n) const {
    named_barrier(Barriers::come(tile, n, group()), Barriers::kCome);
  }
  // The copying warps ask only for the room of tiles that others follow.
  __device__ __forceinline__ void has_read(Tile tile, int n) const {
    if (n + 2 < count_) named_barrier_arrive(Barriers::read(tile, n), Barriers::kRead);
  }
  __device__ __forceinline__ void take_turn() const {
    named_barrier(Barriers::turn(group()), Barriers::kTurn);
  }
  __device__ __forceinline__ void pass_turn(bool pass) const {
    if (pass) named_barrier_arrive(Barriers::turn(1 - group()), Barriers::kTurn);
  }
  __device__ __forceinline__ void soften(int n, float (&shrink)[2]) {
    const int first = first_ + n * kTokens;
    state_.soften(args_, work_, first, first + kTokens - 1 > all_see_ || first < none_hides_, shrink);
  }

  const PrefillArgs<T>& args_;
  const Work& work_;
  Tiles tiles_;
  int first_, count_, all_see_, none_hides_;
  GroupState<T, kHeadDim> state_;
};

// Grid: x over blocks of queries of the longest segment, y over segments, z over tracks and KV heads.
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1) wide_prefill_kernel(PrefillArgs<T> args) {
  begin_kernel();
  Work work;
  if (!find_work<kQueries>(args, work)) return;
  const auto tiles = shared_tiles<kHeadDim>();
  const int first = work.begin / kTokens * kTokens, count = ceil_div(work.end - first, kTokens);
  if (threadIdx.x >= kConsumers) {
    give_registers<kCopierRegisters>();
    Copier<T, kHeadDim> copier(args, work, tiles, first, count);
    copier.begin();
    __syncthreads();
    copier.run();
  } else {
    take_registers<kConsumerRegisters>();
    start_queries<kHeadDim>(args, work, tiles.queries());
    commit_copies();
    wait_copies<0>();
    show_to_products();
    __syncthreads();
    Consumer<T, kHeadDim>(args, work, tiles, first, count).run();
  }
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
