#include "kernels/cuda/attention/online_softmax.cuh"
#include "kernels/cuda/attention/prefill_producer.cuh"

// Prefill attention with wgmma, warp-specialized. Two consumer warpgroups with 64 queries each
// process the tokens they see in tiles of 128, with an online softmax in registers. Four producer
// warps copy keys and values, two stages of each. A warpgroup issues the score product of a tile
// and, after it, the P·V product of the tile before; it computes the softmax while that product
// runs, and while the other warpgroup has the tensor cores (ping-pong scheduling; Shah et al.,
// FlashAttention-3, section 3).
namespace ptrt::cuda {
namespace {

// 2^x; denormal results are flushed to zero.
struct Exp2Approx {
  __device__ __forceinline__ float operator()(float x) const {
#ifdef PTRT_CUDA_EMULATION
    return std::exp2(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
  }
};

// One thread's part of a warpgroup's state.
template <typename T, int kHeadDim>
struct ConsumerState {
  using Storage = SharedStorage<kHeadDim>;
  static constexpr int kScores = kTokens / 2;  // per thread: two rows

  float scores[kScores];             // Q·Kᵀ of a tile; P after update_softmax()
  std::uint32_t p[kTokens / 16][4];  // P of the tile before, packed as wgmma_rs() takes it
  float acc_o[kHeadDim / 2] = {};    // Σ P·V
  OnlineSoftmax<Exp2Approx> softmax;

  static __device__ __forceinline__ int query(int half) { return warp_id() * 16 + lane_id() / 4 + 8 * half; }

  // Issues scores = Q·Kᵀ.
  __device__ __forceinline__ void compute_qk(const Storage& storage, int n) {
    const char* mine = storage.queries() + thread_id() / kWarpgroup * 64 * 128;
    warpgroup_arrive();
#pragma unroll
    for (int k = 0; k < kHeadDim; k += 16) {
      const int at = k / kSwizzleColumns * Storage::kColumnBlock + k % kSwizzleColumns * 2;
      wgmma_ss<T>(scores, make_smem_descriptor(mine, 0).advance(at),
                  make_smem_descriptor(storage.keys(n), 0).advance(at), k > 0);
    }
    warpgroup_commit_batch();
  }

  // Issues acc_o += P·V.
  __device__ __forceinline__ void accumulate_pv(const Storage& storage, int n) {
    warpgroup_arrive();
#pragma unroll
    for (int k = 0; k < kTokens / 16; ++k)
      wgmma_rs<T>(acc_o, p[k],
                  make_smem_descriptor(storage.values(n), Storage::kColumnBlock).advance(k * 16 * 128));
    warpgroup_commit_batch();
  }

  // Replaces scores by P. `rescale`: the factors for acc_o.
  __device__ __forceinline__ void update_softmax(const PrefillArgs<T>& args, const QueryTile& tile, int first,
                                                 bool masked, float (&rescale)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (masked) apply_mask(scores, half, first, tile.visible(query(half), args.window));
      rescale[half] = softmax.update(scores, half, args.scale);
    }
  }

  // Packs P for the next accumulate_pv() and rescales acc_o.
  __device__ __forceinline__ void pack_p_and_rescale(const float (&rescale)[2]) {
#pragma unroll
    for (int k = 0; k < kTokens / 16; ++k) pack_p<T>(scores, k, p[k]);
#pragma unroll
    for (int half = 0; half < 2; ++half) rescale_row(acc_o, half, rescale[half]);
    warpgroup_fence_operand(p);
    warpgroup_fence_operand(acc_o);
  }

  __device__ __forceinline__ void store_output(const PrefillArgs<T>& args, const QueryTile& tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale = softmax.output_scale(half);
      if (tile.is_valid(query(half)))
        store_row<true>(acc_o, half, scale, kHeadDim,
                        args.out + tile.track * args.out_stride + tile.offset(args, query(half)));
    }
  }
};

// One consumer warpgroup.
template <typename T, int kHeadDim>
class Consumer {
 public:
  using Storage = SharedStorage<kHeadDim>;

  // `first`: first token of the first tile; `count`: number of tiles.
  __device__ __forceinline__ Consumer(const PrefillArgs<T>& args, const QueryTile& tile,
                                      const Storage& storage, int first, int count)
      : args_(args), tile_(tile), storage_(storage), first_(first), count_(count) {
    const int last_row = min(tile.row_of(kQueries - 1), tile.rows - 1);
    all_see_last_ = tile.first_position + tile.row_of(0);
    all_see_first_ = args.window > 0 ? tile.first_position + last_row - args.window + 1 : 0;
  }

  __device__ __forceinline__ void run() {
    if (group() == 1) named_barrier_arrive(Barriers::scheduler(0), Barriers::kSchedulerThreads);
    wait_full(Tile::keys, 0);
    scheduler_sync();
    state_.compute_qk(storage_, 0);
    scheduler_arrive();
    warpgroup_wait<0>();
    warpgroup_fence_operand(state_.scores);
    arrive_empty(Tile::keys, 0);
    float rescale[2];
    update_softmax(0, rescale);
    state_.pack_p_and_rescale(rescale);
    for (int n = 0; n + 1 < count_; ++n) {
      wait_full(Tile::keys, n + 1);
      wait_full(Tile::values, n);
      scheduler_sync();
      state_.compute_qk(storage_, n + 1);
      state_.accumulate_pv(storage_, n);
      scheduler_arrive();
      warpgroup_wait<1>();
      warpgroup_fence_operand(state_.scores);
      arrive_empty(Tile::keys, n + 1);
      update_softmax(n + 1, rescale);
      warpgroup_wait<0>();
      warpgroup_fence_operand(state_.acc_o);
      arrive_empty(Tile::values, n);
      state_.pack_p_and_rescale(rescale);
    }
    wait_full(Tile::values, count_ - 1);
    scheduler_sync();
    state_.accumulate_pv(storage_, count_ - 1);
    if (group() == 0) scheduler_arrive();  // nobody waits after group 1's last product
    warpgroup_wait<0>();
    warpgroup_fence_operand(state_.acc_o);
    state_.store_output(args_, tile_);
  }

 private:
  static __device__ __forceinline__ int group() { return thread_id() / kWarpgroup; }
  __device__ __forceinline__ void wait_full(Tile tile, int n) const {
    named_barrier_sync(Barriers::full(tile, n, group()), Barriers::kFullThreads);
  }
  // The producer waits for an empty stage only where another tile will use it.
  __device__ __forceinline__ void arrive_empty(Tile tile, int n) const {
    if (n + kStages < count_) named_barrier_arrive(Barriers::empty(tile, n), Barriers::kEmptyThreads);
  }
  // Waits until it is this warpgroup's turn to issue products; passes the turn to the other.
  __device__ __forceinline__ void scheduler_sync() const {
    named_barrier_sync(Barriers::scheduler(group()), Barriers::kSchedulerThreads);
  }
  __device__ __forceinline__ void scheduler_arrive() const {
    named_barrier_arrive(Barriers::scheduler(1 - group()), Barriers::kSchedulerThreads);
  }
  __device__ __forceinline__ void update_softmax(int n, float (&rescale)[2]) {
    const int first = first_ + n * kTokens;
    const bool masked = first + kTokens - 1 > all_see_last_ || first < all_see_first_;
    state_.update_softmax(args_, tile_, first, masked, rescale);
  }

  const PrefillArgs<T>& args_;
  const QueryTile& tile_;
  Storage storage_;
  int first_, count_;
  int all_see_first_, all_see_last_;  // every row of the block sees the tokens from the one to the other
  ConsumerState<T, kHeadDim> state_;
};

// Grid: x over blocks of queries of the longest chunk, y over chunks, z over tracks and KV heads.
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1) prefill_wgmma_kernel(PrefillArgs<T> args) {
  pdl_trigger_and_wait();
  QueryTile tile;
  if (!find_query_tile<kQueries>(args, tile)) return;
  const auto storage = shared_storage<kHeadDim>();
  const int first = tile.kv_begin / kTokens * kTokens, count = ceil_div(tile.kv_end - first, kTokens);
  if (threadIdx.x >= kConsumerThreads) {
    warpgroup_reg_dealloc<kProducerRegisters>();
    Producer<T, kHeadDim> producer(args, tile, storage, first, count);
    producer.fill_stages();
    __syncthreads();
    producer.run();
  } else {
    warpgroup_reg_alloc<kConsumerRegisters>();
    load_queries<kHeadDim>(args, tile, storage.queries());
    cp_async_commit();
    cp_async_wait<0>();
    fence_proxy_async();
    __syncthreads();
    Consumer<T, kHeadDim>(args, tile, storage, first, count).run();
  }
}

template <int kHeadDim, typename T>
void launch_wgmma(const PrefillArgs<T>& args, const AttentionJob& job, const StepInput& step) {
  const std::int64_t queries = step.longest_prefill_chunk() * (job.shape.heads / job.shape.kv_heads);
  const dim3 grid(static_cast<unsigned>(ceil_div<std::int64_t>(queries, kQueries)),
                  static_cast<unsigned>(step.prefill_chunk_count()),
                  static_cast<unsigned>(job.q.tracks * job.shape.kv_heads));
  launch({"prefill_attention_wgmma", grid, dim3(kThreads), job.stream, SharedStorage<kHeadDim>::kBytes},
         prefill_wgmma_kernel<T, kHeadDim>, args);
}

}  // namespace

bool wgmma_supports(const AttentionShape& shape) {
  return shape.head_dim == 64 || shape.head_dim == 128;
}

void wgmma_prefill_attention(const AttentionJob& job, const StepInput& step) {
  dispatch_dtype(job.q.dtype, [&]<typename T>(TypeTag<T>) {
    const PrefillArgs<T> args = prefill_args<T>(job, step);
    if (job.shape.head_dim == 64)
      launch_wgmma<64>(args, job, step);
    else
      launch_wgmma<128>(args, job, step);
  });
}

}  // namespace ptrt::cuda
