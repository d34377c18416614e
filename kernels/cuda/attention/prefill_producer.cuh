// The pipeline of attention_wgmma.cu: its threads, its tiles in shared memory, its barriers, and
// the producer warps that copy keys and values.
#pragma once

#include "kernels/cuda/attention/prefill_tile.cuh"
#include "kernels/cuda/ptx/cp_async.cuh"
#include "kernels/cuda/ptx/named_barrier.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace ptrt::cuda {
namespace {

constexpr int kWarpgroup = 128;  // threads
constexpr int kConsumerGroups = 2;
constexpr int kConsumerThreads = kWarpgroup * kConsumerGroups;
constexpr int kProducerThreads = kWarpgroup;
constexpr int kThreads = kConsumerThreads + kProducerThreads;
// Registers per thread. Together no more than all threads have at the start, 168 each.
constexpr int kConsumerRegisters = 216, kProducerRegisters = 72;
constexpr int kQueries = 64 * kConsumerGroups;  // of a block
constexpr int kTokens = 128;                    // of a tile of keys or values
constexpr int kStages = 2;                      // tiles of keys, and of values, in shared memory

// Named barriers. A tile is full: producer threads and one warpgroup. A tile is empty: producer
// threads and both warpgroups. The scheduler barrier gives the tensor cores to one warpgroup: both
// warpgroups.
enum class Tile { keys, values };
struct Barriers {
  static constexpr int kFullThreads = kProducerThreads + kWarpgroup;
  static constexpr int kEmptyThreads = kProducerThreads + kConsumerThreads;
  static constexpr int kSchedulerThreads = kConsumerThreads;
  static __device__ __forceinline__ int full(Tile tile, int n, int group) {
    return 1 + (tile == Tile::values ? 4 : 0) + n % kStages * 2 + group;
  }
  static __device__ __forceinline__ int empty(Tile tile, int n) {
    return 9 + (tile == Tile::values ? 2 : 0) + n % kStages;
  }
  static __device__ __forceinline__ int scheduler(int group) { return 13 + group; }
};

// Shared memory: queries, two tiles of keys, two of values, each [kHeadDim / 64][128][64] elements,
// swizzled.
template <int kHeadDim>
struct SharedStorage {
  static constexpr int kColumnBlock = 128 * 128;  // bytes of 128 rows × 64 columns
  static constexpr int kTile = kColumnBlock * (kHeadDim / kSwizzleColumns);
  static constexpr std::size_t kBytes = (1 + 2 * kStages) * kTile + kSwizzleAtomBytes;  // room to align them
  static_assert(kQueries == 128 && kTokens == 128);

  char* memory;
  __device__ __forceinline__ char* queries() const { return memory; }
  __device__ __forceinline__ char* keys(int n) const { return memory + (1 + n % kStages) * kTile; }
  __device__ __forceinline__ char* values(int n) const {
    return memory + (1 + kStages + n % kStages) * kTile;
  }
  static __device__ __forceinline__ int offset(int row, int column) {
    return column / kSwizzleColumns * kColumnBlock + swizzle_128b(row, column % kSwizzleColumns);
  }
};

template <int kHeadDim>
__device__ __forceinline__ SharedStorage<kHeadDim> shared_storage() {
  auto* memory = static_cast<char*>(shared_memory());
  const auto over = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(memory) % kSwizzleAtomBytes);
  return {memory + (kSwizzleAtomBytes - over) % kSwizzleAtomBytes};
}

// Starts the copy of the tile's queries by the consumers; zeros for those beyond the chunk's end.
template <int kHeadDim, typename T>
__device__ __forceinline__ void load_queries(const PrefillArgs<T>& args, const QueryTile& tile, char* to) {
  constexpr int kPieces = kHeadDim / 8;
  const T* q = args.q + tile.track * args.q_stride;
#pragma unroll
  for (int i = thread_id(); i < kQueries * kPieces; i += kConsumerThreads) {
    const int query = i / kPieces, at = i % kPieces * 8;
    const bool valid = tile.is_valid(query);
    cp_async_zfill(to + SharedStorage<kHeadDim>::offset(query, at),
                   valid ? q + tile.offset(args, query) + at : q, valid);
  }
}

// The producer warps: each copies some pages of every tile. Copies alternate between keys and
// values: copy 2 · n is the n-th tile of keys, copy 2 · n + 1 the n-th tile of values.
template <typename T, int kHeadDim>
class Producer {
 public:
  using Storage = SharedStorage<kHeadDim>;

  // `first`: first token of the first tile; `count`: number of tiles.
  __device__ __forceinline__ Producer(const PrefillArgs<T>& args, const QueryTile& tile,
                                      const Storage& storage, int first, int count)
      : keys_(args.pool.keys(0, tile.track, tile.kv_head) + row() * kHeadDim + column()),
        values_offset_(args.pool.values_offset),
        page_stride_(static_cast<unsigned>(args.pool.page_stride)),
        pages_(tile.pages),
        end_(tile.kv_end),
        storage_(storage),
        first_(first),
        count_(count) {}

  // Starts the copies that need not wait for an empty tile.
  __device__ __forceinline__ void fill_stages() {
    for (int n = 0; n < min(kStages, count_); ++n) {
      load_tile(Tile::keys, n);
      load_tile(Tile::values, n);
    }
  }
  // Starts all other copies, each as soon as its stage is empty, and signals every copy that has
  // landed.
  __device__ __forceinline__ void run() {
    int signalled = 0;  // copies
    if (count_ > kStages) {
      cp_async_wait<3>();
      arrive_full(signalled++);
      cp_async_wait<2>();
      arrive_full(signalled++);
    }
    for (int n = kStages; n < count_; ++n) {
      reload_stage(Tile::keys, n, signalled++);
      reload_stage(Tile::values, n, signalled++);
    }
    cp_async_wait<0>();
    while (signalled < 2 * count_) arrive_full(signalled++);
  }

 private:
  static constexpr int kPieces = kHeadDim / 8;
  static constexpr int kRows = kWarpSize / kPieces;  // tokens that a warp copies at once
  static constexpr int kPages = kTokens / kPageSize / (kProducerThreads / kWarpSize);  // per warp
  static __device__ __forceinline__ int first_page() {
    return thread_id() % kProducerThreads / kWarpSize * kPages;
  }
  static __device__ __forceinline__ int row() { return lane_id() / kPieces; }
  static __device__ __forceinline__ int column() { return lane_id() % kPieces * 8; }

  // All copies but the last are signalled before the producer waits for the slower warpgroup to
  // empty a stage, so that the faster warpgroup can continue.
  __device__ __forceinline__ void reload_stage(Tile tile, int n, int next_to_signal) const {
    cp_async_wait<1>();
    arrive_full(next_to_signal);
    named_barrier_sync(Barriers::empty(tile, n), Barriers::kEmptyThreads);
    load_tile(tile, n);
  }

  // Starts the copy of a tile. Rows beyond the last token are zeros: 0 · NaN would be NaN.
  __device__ __forceinline__ void load_tile(Tile tile, int n) const {
    const T* from = keys_ + (tile == Tile::values ? values_offset_ : 0);
    char* to = tile == Tile::values ? storage_.values(n) : storage_.keys(n);
    int pages[kPages];
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      const int page = (first_ + n * kTokens) / kPageSize + first_page() + i;
      pages[i] = page * kPageSize < end_ ? pages_[page] : 0;
    }
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      const T* rows = from + static_cast<std::uint64_t>(static_cast<unsigned>(pages[i])) * page_stride_;
#pragma unroll
      for (int r = 0; r < kPageSize; r += kRows) {
        const int token = (first_page() + i) * kPageSize + r + row();
        cp_async_zfill(to + Storage::offset(token, column()), rows + r * kHeadDim,
                       first_ + n * kTokens + token < end_);
      }
    }
    cp_async_commit();
  }
  __device__ __forceinline__ void arrive_full(int copy) const {
    fence_proxy_async();
    const Tile tile = copy % 2 == 0 ? Tile::keys : Tile::values;
#pragma unroll
    for (int group = 0; group < kConsumerGroups; ++group)
      named_barrier_arrive(Barriers::full(tile, copy / 2, group), Barriers::kFullThreads);
  }

  const T* keys_;
  std::int64_t values_offset_;
  unsigned page_stride_;
  const std::int32_t* pages_;
  int end_;
  Storage storage_;
  int first_, count_;
};

}  // namespace
}  // namespace ptrt::cuda
