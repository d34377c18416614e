// The bandwidth-bound product over many tiles: matmul_tile.cuh's tiles of 16 rows of weights, one after the
// other in blocks that stay, with weights on their way all the time. Each warp has a ring of stages in shared
// memory, filled by cp.async in the order in which it takes them, across the ends of tiles; the first are
// asked for before the kernels before this one have ended, for nobody writes weights.
//
// A stage is 16 rows × 128 inputs, rows of 256 bytes, in pieces of 16. Odd rows have the two halves of
// each 128 bytes exchanged, so that two rows' pieces, which a quarter of a warp reads at once, lie in
// different banks.
#pragma once

#include "kernels/cuda/matmul/matmul_tile.cuh"

namespace ptrt::cuda {

inline constexpr int kSliceInputs = kChunk * kChunks;  // of a stage
inline constexpr int kStageBytes = kTileOuts * kSliceInputs * 2;
inline constexpr int kPieces = kSliceInputs / 8;  // of a row of a stage
inline constexpr int kRingBlocks = 2;             // on a multiprocessor

// Sixteen rows of weights, eight of one place and eight of another: 16 outputs of a matrix, or 8 of each of
// two.
template <typename T>
struct WeightTile {
  const T* w[2] = {};  // [rows[i], in], in a multiple of 8; null: there is no such tile
  int rows[2] = {};    // 1 to 8; the last stands for those that are not there
  int in = 0;
  int first_out = 0, outs = 0;  // what is put
};

// Outputs [first_out, first_out + 16) of w [outs, in], as far as they go.
template <typename T>
__device__ __forceinline__ WeightTile<T> tile_of(const T* w, int in, int outs, int first_out) {
  const T* first = w + static_cast<std::int64_t>(first_out) * in;
  const int there = min(outs - first_out, kTileOuts);
  if (there <= 8) return {{first, first}, {there, there}, in, first_out, there};
  return {{first, first + 8 * static_cast<std::int64_t>(in)}, {8, there - 8}, in, first_out, there};
}
// Outputs [first_out, first_out + 8) of two matrices of one size.
template <typename T>
__device__ __forceinline__ WeightTile<T> tile_of_pair(const T* a, const T* b, int in, int outs,
                                                      int first_out) {
  const std::int64_t begin = static_cast<std::int64_t>(first_out) * in;
  const int there = min(outs - first_out, kTileOuts / 2);
  return {{a + begin, b + begin}, {there, there}, in, first_out, there};
}

// The stages, and the warps' sums of two tiles.
template <int kColumns, int kStages>
constexpr std::size_t ring_shared_bytes(int warps) {
  return static_cast<std::size_t>(warps) * (kStages * kStageBytes + 2 * product_shared_bytes<kColumns>(1));
}

// One warp's stages. tile_at(n) is the block's n-th tile; of each the warp takes the slices warp, warp +
// warps …
template <typename T, int kStages, class TileAt>
class WeightRing {
 public:
  __device__ __forceinline__ WeightRing(const TileAt& tile_at, unsigned char* memory)
      : tile_at_(tile_at), memory_(memory), tile_(tile_at(0)), at_(first_input()) {
    find_slice();
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) fill(stage);
  }

  // Waits for the next slice, takes this lane's fragments of it and lets its stage be filled again.
  __device__ __forceinline__ void take(Eight (&upper)[kChunks], Eight (&lower)[kChunks]) {
    wait_copies<kStages - 1>();
    __syncwarp();
    const int group = lane() / 4, quad = lane() % 4;
    const unsigned char* row = memory_ + stage_ * kStageBytes + group * kPieces * 16;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int piece = place(group, 4 * i + quad);
      upper[i] = *reinterpret_cast<const Eight*>(row + piece);
      lower[i] = *reinterpret_cast<const Eight*>(row + 8 * kPieces * 16 + piece);
    }
    __syncwarp();
    fill(stage_);
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
  }

 private:
  static __device__ __forceinline__ int lane() {
    return static_cast<int>(threadIdx.x) % kWarp;
  }
  static __device__ __forceinline__ int first_input() {
    return static_cast<int>(threadIdx.x) / kWarp * kSliceInputs;
  }
  // Byte of a row at which one of its pieces lies; row may be any of the same parity.
  static __device__ __forceinline__ int place(int row, int piece) {
    return (piece ^ row % 2 * 4) * 16;
  }

  __device__ __forceinline__ void find_slice() {
    while (tile_.w[0] != nullptr && at_ >= tile_.in) {
      tile_ = tile_at_(++tile_number_);
      at_ = first_input();
    }
  }

  // Half a warp copies a row: lanes 0-15 the even ones, the others the odd ones.
  __device__ __forceinline__ void fill(int stage) {
    if (tile_.w[0] != nullptr) {
      const int odd = lane() / kPieces, piece = lane() % kPieces, input = at_ + 8 * piece;
      const bool valid = input < tile_.in;
      unsigned char* to = memory_ + stage * kStageBytes + odd * kPieces * 16 + place(odd, piece);
#pragma unroll
      for (int pair = 0; pair < kTileOuts / 2; ++pair) {
        const int half = pair / 4, row = min(pair % 4 * 2 + odd, tile_.rows[half] - 1);
        const T* from = tile_.w[half] + static_cast<std::int64_t>(row) * tile_.in + (valid ? input : 0);
        copy_async(to + pair * 2 * kPieces * 16, from, valid);
      }
      at_ += static_cast<int>(blockDim.x) / kWarp * kSliceInputs;
      find_slice();
    }
    commit_copies();
  }

  const TileAt& tile_at_;
  unsigned char* memory_;
  WeightTile<T> tile_;  // that is filled in next, from at_ on
  int tile_number_ = 0, at_, stage_ = 0;
};

// All tiles of the block. Work has
//   kPaired                     whether its tiles are of two matrices
//   WeightTile<T> tile(n)       the n-th tile of the block
//   void begin(n)               what follows is of tile n
//   const T* row(i)             of x, i < 8 · kColumns, null where there is none (the first is there)
//   void put(out, i, sum, other)  for each output and row that exists; other: of the second matrix
// Shared memory: ring_shared_bytes(). Includes what a kernel begins with.
template <int kColumns, int kStages, typename T, class Work>
__device__ __forceinline__ void ring_products(Work& work) {
  constexpr int kRows = 8 * kColumns, kSums = kTileOuts * kRows;
  let_next_start();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp, group = lane / 4, quad = lane % 4;
  auto* memory = static_cast<unsigned char*>(shared_memory());
  auto* partials = reinterpret_cast<float*>(memory + warps * kStages * kStageBytes);
  const auto tile_at = [&work](int n) { return work.tile(n); };
  WeightRing<T, kStages, decltype(tile_at)> ring(tile_at, memory + warp * kStages * kStageBytes);
  WeightTile<T> tile = work.tile(0);
  work.begin(0);
  wait_for_previous();

  for (int n = 0; tile.w[0] != nullptr;) {
    const T* x[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      // Rows beyond the last repeat the first, so that no load hangs on a branch.
      const T* there = work.row(8 * c + group);
      x[c] = there != nullptr ? there : work.row(0);
    }
    float sum[kColumns][4] = {};
    for (int k = warp * kSliceInputs; k < tile.in; k += warps * kSliceInputs) {
      Eight part[kChunks][kColumns], upper[kChunks], lower[kChunks];
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
#pragma unroll
        for (int c = 0; c < kColumns; ++c) part[i][c] = load8<true>(x[c], k + i * kChunk + quad * 8, tile.in);
      ring.take(upper, lower);
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
#pragma unroll
        for (int c = 0; c < kColumns; ++c) multiply<T>(upper[i], lower[i], part[i][c], sum[c]);
    }

    // Two sets of sums in turns: who is done with one tile writes those of the next.
    float* all = partials + n % 2 * warps * kSums;
    float* mine = all + warp * kSums;  // [row][out]
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        mine[(8 * c + 2 * quad + i % 2) * kTileOuts + group + i / 2 * 8] = sum[c][i];
    __syncthreads();
    constexpr int kOuts = Work::kPaired ? kTileOuts / 2 : kTileOuts;
    for (int i = static_cast<int>(threadIdx.x); i < kOuts * kRows; i += static_cast<int>(blockDim.x)) {
      const int out = i % kOuts, r = i / kOuts;
      if (out >= tile.outs || work.row(r) == nullptr) continue;
      const float* parts = all + r * kTileOuts + out;
      float total = 0, paired = 0;
      for (int other = 0; other < warps; ++other) {
        total += parts[other * kSums];
        if constexpr (Work::kPaired) paired += parts[other * kSums + kOuts];
      }
      work.put(tile.first_out + out, r, total, paired);
    }
    tile = work.tile(++n);
    if (tile.w[0] != nullptr) work.begin(n);
  }
  wait_copies<0>();
}

}  // namespace ptrt::cuda
