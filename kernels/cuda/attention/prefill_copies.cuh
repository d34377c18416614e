// Where a block of attention_wgmma.cu keeps its tiles, and the warps that bring them there.
#pragma once

#include "kernels/cuda/attention/prefill_work.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace ptrt::cuda {
namespace {

constexpr int kGroups = 2;
constexpr int kConsumers = 128 * kGroups;
constexpr int kCopiers = 128;
constexpr int kThreads = kConsumers + kCopiers;
// Of a thread; together no more than all had at the start, 168 of each.
constexpr int kConsumerRegisters = 216, kCopierRegisters = 72;
constexpr int kQueries = 64 * kGroups;
constexpr int kTokens = 128;
constexpr int kScores = kTokens / 2;  // of a thread: two rows

// Barriers. A tile has come (copying warps and one warpgroup), a tile has been read (copying warps and both),
// and whose turn it is (both warpgroups).
enum class Tile { keys, values };
struct Barriers {
  static constexpr int kCome = kCopiers + 128, kRead = kCopiers + kConsumers, kTurn = kConsumers;
  static __device__ __forceinline__ int come(Tile tile, int n, int group) {
    return 1 + (tile == Tile::values ? 4 : 0) + n % 2 * 2 + group;
  }
  static __device__ __forceinline__ int read(Tile tile, int n) {
    return 9 + (tile == Tile::values ? 2 : 0) + n % 2;
  }
  static __device__ __forceinline__ int turn(int group) { return 13 + group; }
};

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
  for (int i = static_cast<int>(threadIdx.x); i < kQueries * kParts; i += kConsumers) {
    const int query = i / kParts, at = i % kParts * 8;
    const bool valid = work.there(query);
    copy_async(to + SharedTiles<kHeadDim>::place(query, at), valid ? q + work.offset(args, query) + at : q,
               valid);
  }
}

// What the copying warps do; each copies some pages of every tile.
template <typename T, int kHeadDim>
class Copier {
 public:
  using Tiles = SharedTiles<kHeadDim>;

  __device__ __forceinline__ Copier(const PrefillArgs<T>& args, const Work& work, const Tiles& tiles,
                                    int first, int count)
      : keys_(args.pool.keys(0, work.track, work.kv_head) + row() * kHeadDim + column()),
        values_offset_(args.pool.values_offset),
        page_stride_(static_cast<unsigned>(args.pool.page_stride)),
        pages_(work.pages),
        end_(work.end),
        tiles_(tiles),
        first_(first),
        count_(count) {}

  // The first two tiles, for which there is room.
  __device__ __forceinline__ void begin() {
    for (int n = 0; n < min(2, count_); ++n) {
      start(Tile::keys, n);
      start(Tile::values, n);
    }
  }
  // All others, each as soon as there is room, and word of what has come.
  __device__ __forceinline__ void run() {
    int told = 0;  // copies, keys and values by turns
    if (count_ > 2) {
      wait_copies<3>();
      tell(told++);
      wait_copies<2>();
      tell(told++);
    }
    for (int n = 2; n < count_; ++n) {
      refill(Tile::keys, n, told++);
      refill(Tile::values, n, told++);
    }
    wait_copies<0>();
    while (told < 2 * count_) tell(told++);
  }

 private:
  static constexpr int kParts = kHeadDim / 8, kRows = kWarp / kParts;  // a warp copies kRows tokens at once
  static constexpr int kPages = kTokens / kTokensOfPage / (kCopiers / kWarp);  // of a warp
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  static __device__ __forceinline__ int first_page() {
    return static_cast<int>(threadIdx.x) % kCopiers / kWarp * kPages;
  }
  static __device__ __forceinline__ int row() { return lane() / kParts; }
  static __device__ __forceinline__ int column() { return lane() % kParts * 8; }

  // Before the copying warps wait for room, which the slower warpgroup makes, they have told of all copies
  // but the last: the faster one goes on with these.
  __device__ __forceinline__ void refill(Tile tile, int n, int next_to_tell) const {
    wait_copies<1>();
    tell(next_to_tell);
    named_barrier(Barriers::read(tile, n), Barriers::kRead);
    start(tile, n);
  }

  // Zeros where there is no token, so that a weight of zero meets no NaN.
  __device__ __forceinline__ void start(Tile tile, int n) const {
    const T* from = keys_ + (tile == Tile::values ? values_offset_ : 0);
    char* to = tile == Tile::values ? tiles_.values(n) : tiles_.keys(n);
    int pages[kPages];
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      const int page = (first_ + n * kTokens) / kTokensOfPage + first_page() + i;
      pages[i] = page * kTokensOfPage < end_ ? pages_[page] : 0;
    }
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      const T* rows = from + static_cast<std::uint64_t>(static_cast<unsigned>(pages[i])) * page_stride_;
#pragma unroll
      for (int r = 0; r < kTokensOfPage; r += kRows) {
        const int token = (first_page() + i) * kTokensOfPage + r + row();
        copy_async(to + Tiles::place(token, column()), rows + r * kHeadDim,
                   first_ + n * kTokens + token < end_);
      }
    }
    commit_copies();
  }
  __device__ __forceinline__ void tell(int number) const {
    show_to_products();
    const Tile tile = number % 2 == 0 ? Tile::keys : Tile::values;
#pragma unroll
    for (int group = 0; group < kGroups; ++group)
      named_barrier_arrive(Barriers::come(tile, number / 2, group), Barriers::kCome);
  }

  const T* keys_;
  std::int64_t values_offset_;
  unsigned page_stride_;
  const std::int32_t* pages_;
  int end_;
  Tiles tiles_;
  int first_, count_;
};

}  // namespace
}  // namespace ptrt::cuda
