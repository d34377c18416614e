#include "kernels/cuda/attention/online_softmax.cuh"
#include "kernels/cuda/attention/prefill_tile.cuh"
#include "kernels/cuda/ptx/cp_async.cuh"
#include "kernels/cuda/ptx/mma.cuh"

// Prefill attention with mma.sync. A block computes a tile of queries, a warp 32 of them where
// registers allow, else 16. It processes the tokens they see in tiles: scores on tensor cores, an
// online softmax in registers, P·V on tensor cores. A warp reads keys and values from shared memory
// once for all of its queries; the next tile is copied while one is computed.
namespace ptrt::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;

// Shared memory: queries and two stages of keys and values. Rows are padded so that the 16-byte
// pieces of eight rows lie in different banks.
template <typename T, int kHeadDim>
struct SharedStorage {
  static constexpr int kRowTiles = kHeadDim > 128 ? 1 : 2;  // of 16 queries each, per warp
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
__device__ __forceinline__ void load_queries(const PrefillArgs<T>& args, const QueryTile& tile, T* to) {
  constexpr int kPieces = kHeadDim / 8, kQueries = SharedStorage<T, kHeadDim>::kQueries;
  const T* q = args.q + tile.track * args.q_stride;
  for (int i = thread_id(); i < kQueries * kPieces; i += kThreads) {
    const int query = i / kPieces, at = i % kPieces * 8;
    Vec8 part = zeros8();
    if (tile.is_valid(query)) {
      const T* vector = q + tile.offset(args, query);
      part = args.head_dim % 8 == 0 ? load8<true>(vector, at, args.head_dim)
                                    : load8<false>(vector, at, args.head_dim);
    }
    *reinterpret_cast<Vec8*>(to + query * SharedStorage<T, kHeadDim>::kPitch + at) = part;
  }
}

// Starts the copy of the keys and values of tokens [first, first + kTokens). Rows beyond the last
// token are zeros: 0 · NaN would be NaN.
template <typename T, int kHeadDim>
__device__ __forceinline__ void load_kv(const PrefillArgs<T>& args, const QueryTile& tile, int first,
                                        const SharedStorage<T, kHeadDim>& storage, int stage) {
  using Storage = SharedStorage<T, kHeadDim>;
  constexpr int kPieces = kHeadDim / 8;
  for (int i = thread_id(); i < Storage::kTokens * kPieces; i += kThreads) {
    const int token = i / kPieces, at = i % kPieces * 8, position = first + token;
    const bool valid = position < tile.kv_end && at < args.head_dim;
    const T* from = args.pool.data;
    if (valid) {
      const std::int64_t page = tile.pages[position / kPageSize];
      from = args.pool.keys(page, tile.track, tile.kv_head) + position % kPageSize * args.head_dim + at;
    }
    T* key = storage.keys(stage) + token * Storage::kPitch + at;
    T* value = storage.values(stage) + token * Storage::kPitch + at;
    if (args.head_dim % 8 == 0) {
      cp_async_zfill(key, from, valid);
      cp_async_zfill(value, valid ? from + args.pool.values_offset : from, valid);
    } else {
      const int width = valid ? args.head_dim - at : 0;
      *reinterpret_cast<Vec8*>(key) = load8<false>(from, 0, width);
      *reinterpret_cast<Vec8*>(value) = load8<false>(from + args.pool.values_offset, 0, width);
    }
  }
}

struct Exp2 {
  __device__ __forceinline__ float operator()(float x) const { return exp2f(x); }
};

// A warp's state: 16 · kRowTiles queries.
template <typename T, int kHeadDim>
struct WarpState {
  using Storage = SharedStorage<T, kHeadDim>;
  float scores[Storage::kRowTiles][Storage::kTokens / 8][4];  // Q·Kᵀ of a tile; P after update_softmax()
  float acc_o[Storage::kRowTiles][kHeadDim / 8][4] = {};      // Σ P·V
  OnlineSoftmax<Exp2> softmax[Storage::kRowTiles];

  static __device__ __forceinline__ int first_query() { return warp_id() * Storage::kWarpQueries; }
  static __device__ __forceinline__ int query(int row_tile, int half) {
    return first_query() + row_tile * 16 + lane_id() / 4 + 8 * half;
  }

  // scores = Q·Kᵀ
  __device__ __forceinline__ void compute_qk(const Storage& storage, int stage) {
    const T* q = storage.q() + (first_query() + lane_id() % 16) * Storage::kPitch + lane_id() / 16 * 8;
    const T* keys =
        storage.keys(stage) + (lane_id() % 8 + lane_id() / 16 * 8) * Storage::kPitch + lane_id() / 8 % 2 * 8;
#pragma unroll
    for (auto& row_tile : scores)
#pragma unroll
      for (auto& d : row_tile)
#pragma unroll
        for (float& score : d) score = 0;
#pragma unroll
    for (int k = 0; k < kHeadDim; k += 16) {
      std::uint32_t a[Storage::kRowTiles][4];
#pragma unroll
      for (int m = 0; m < Storage::kRowTiles; ++m) ldmatrix_x4(a[m], q + m * 16 * Storage::kPitch + k);
#pragma unroll
      for (int n = 0; n < Storage::kTokens / 8; n += 2) {
        std::uint32_t b[4];
        ldmatrix_x4(b, keys + n * 8 * Storage::kPitch + k);
#pragma unroll
        for (int m = 0; m < Storage::kRowTiles; ++m) {
          mma_m16n8k16<T>(scores[m][n], a[m], {b[0], b[1]});
          mma_m16n8k16<T>(scores[m][n + 1], a[m], {b[2], b[3]});
        }
      }
    }
  }

  // Masks the scores, replaces them by P and rescales acc_o.
  __device__ __forceinline__ void update_softmax(const PrefillArgs<T>& args, const QueryTile& tile,
                                                 int first) {
#pragma unroll
    for (int m = 0; m < Storage::kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        apply_mask(scores[m], half, first, tile.visible(query(m, half), args.window));
        const float rescale = softmax[m].update(scores[m], half, args.scale);
        rescale_row(acc_o[m], half, rescale);
      }
  }

  // acc_o += P·V.
  __device__ __forceinline__ void accumulate_pv(const Storage& storage, int stage) {
    const T* values = storage.values(stage) + lane_id() % 16 * Storage::kPitch + lane_id() / 16 * 8;
#pragma unroll
    for (int k = 0; k < Storage::kTokens / 16; ++k) {
      std::uint32_t a[Storage::kRowTiles][4];
#pragma unroll
      for (int m = 0; m < Storage::kRowTiles; ++m) pack_p<T>(scores[m], k, a[m]);
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; n += 2) {
        std::uint32_t b[4];
        ldmatrix_x4_trans(b, values + k * 16 * Storage::kPitch + n * 8);
#pragma unroll
        for (int m = 0; m < Storage::kRowTiles; ++m) {
          mma_m16n8k16<T>(acc_o[m][n], a[m], {b[0], b[1]});
          mma_m16n8k16<T>(acc_o[m][n + 1], a[m], {b[2], b[3]});
        }
      }
    }
  }

  __device__ __forceinline__ void store_output(const PrefillArgs<T>& args, const QueryTile& tile) {
#pragma unroll
    for (int m = 0; m < Storage::kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float scale = softmax[m].output_scale(half);
        if (tile.is_valid(query(m, half)))
          store_row<false>(acc_o[m], half, scale, args.head_dim,
                           args.out + tile.track * args.out_stride + tile.offset(args, query(m, half)));
      }
  }
};

// Grid: x over tiles of queries of the longest chunk, y over chunks, z over tracks and KV
// heads.
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads) prefill_kernel(PrefillArgs<T> args) {
  pdl_trigger_and_wait();
  using Storage = SharedStorage<T, kHeadDim>;
  QueryTile tile;
  if (!find_query_tile<Storage::kQueries>(args, tile)) return;
  const Storage storage{static_cast<T*>(shared_memory())};
  load_queries<kHeadDim>(args, tile, storage.q());

  WarpState<T, kHeadDim> state;
  const int begin = tile.kv_begin / Storage::kTokens * Storage::kTokens;
  load_kv(args, tile, begin, storage, 0);
  cp_async_commit();
  int stage = 0;
  for (int first = begin; first < tile.kv_end; first += Storage::kTokens, stage ^= 1) {
    if (first + Storage::kTokens < tile.kv_end)
      load_kv(args, tile, first + Storage::kTokens, storage, stage ^ 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    state.compute_qk(storage, stage);
    state.update_softmax(args, tile, first);
    state.accumulate_pv(storage, stage);
    __syncthreads();  // the next iteration overwrites this stage
  }
  cp_async_wait<0>();
  state.store_output(args, tile);
}

template <int kHeadDim, typename T>
void launch_prefill(const PrefillArgs<T>& args, std::int64_t queries, dim3 grid, cudaStream_t stream) {
  const auto blocks =
      static_cast<unsigned>(ceil_div<std::int64_t>(queries, SharedStorage<T, kHeadDim>::kQueries));
  launch({"prefill_attention", dim3(blocks, grid.y, grid.z), dim3(kThreads), stream,
          SharedStorage<T, kHeadDim>::kBytes},
         prefill_kernel<T, kHeadDim>, args);
}

template <typename T>
void launch_kernel(const AttentionJob& job, const StepInput& step) {
  const AttentionShape& shape = job.shape;
  const PrefillArgs<T> args = prefill_args<T>(job, step);
  const std::int64_t queries = step.longest_prefill_chunk() * (shape.heads / shape.kv_heads);
  const dim3 grid(1, static_cast<unsigned>(step.prefill_chunk_count()),
                  static_cast<unsigned>(job.q.tracks * shape.kv_heads));
  if (shape.head_dim <= 64)
    launch_prefill<64>(args, queries, grid, job.stream);
  else if (shape.head_dim <= 80)
    launch_prefill<80>(args, queries, grid, job.stream);
  else if (shape.head_dim <= 96)
    launch_prefill<96>(args, queries, grid, job.stream);
  else if (shape.head_dim <= 128)
    launch_prefill<128>(args, queries, grid, job.stream);
  else
    launch_prefill<256>(args, queries, grid, job.stream);
}

}  // namespace

void prefill_attention(const AttentionJob& job, const StepInput& step) {
  if (step.prefill_chunk_count() == 0) return;
#ifdef PTRT_HAS_WGMMA
  if (device_traits().has_wgmma && wgmma_supports(job.shape)) return wgmma_prefill_attention(job, step);
#endif
  dispatch_dtype(job.q.dtype, [&]<typename T>(TypeTag<T>) { launch_kernel<T>(job, step); });
}

}  // namespace ptrt::cuda
