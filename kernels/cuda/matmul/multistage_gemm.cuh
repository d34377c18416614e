// The bandwidth-bound GEMM with persistent blocks and multistage cp.async copies of the weights.
// Each block computes several of gemm_tile.cuh's tiles of 16 rows of weights. Each warp has a
// circular buffer of stages in shared memory and fills it in the order in which it consumes it,
// across the ends of tiles, so that loads of weights are always in flight. The first loads start
// before the preceding kernels have ended: no kernel writes weights.
//
// A stage is 16 rows × 128 inputs; a row is 256 bytes in pieces of 16. Odd rows have the two halves
// of each 128 bytes exchanged, so that the pieces of two rows, which a quarter of a warp reads at
// once, lie in different banks.
#pragma once

#include "kernels/cuda/matmul/gemm_tile.cuh"
#include "kernels/cuda/ptx/cp_async.cuh"

namespace ptrt::cuda {

inline constexpr int kSliceInputs = kChunk * kChunks;  // of a stage
inline constexpr int kStageBytes = kTileOuts * kSliceInputs * 2;
inline constexpr int kPieces = kSliceInputs / 8;  // of a row of a stage
inline constexpr int kMultistageBlocks = 2;       // per multiprocessor

// Sixteen rows of weights in two halves of eight: 16 outputs of one matrix, or 8 outputs of each of
// two.
template <typename T>
struct WeightTile {
  const T* w[2] = {};  // [rows[i], in], `in` a multiple of 8; null: no tile
  int rows[2] = {};    // 1 to 8; the last one replaces missing rows
  int in = 0;
  int first_out = 0, outs = 0;  // the outputs that are stored
};

// Outputs [first_out, first_out + 16) of w [outs, in], up to the last.
template <typename T>
__device__ __forceinline__ WeightTile<T> tile_of(const T* w, int in, int outs, int first_out) {
  const T* first = w + static_cast<std::int64_t>(first_out) * in;
  const int count = min(outs - first_out, kTileOuts);
  if (count <= 8) return {{first, first}, {count, count}, in, first_out, count};
  return {{first, first + 8 * static_cast<std::int64_t>(in)}, {8, count - 8}, in, first_out, count};
}
// Outputs [first_out, first_out + 8) of two matrices of one size.
template <typename T>
__device__ __forceinline__ WeightTile<T> tile_of_pair(const T* a, const T* b, int in, int outs,
                                                      int first_out) {
  const std::int64_t begin = static_cast<std::int64_t>(first_out) * in;
  const int count = min(outs - first_out, kTileOuts / 2);
  return {{a + begin, b + begin}, {count, count}, in, first_out, count};
}

// Shared memory of a block: the stages, and the warps' partial sums of two tiles.
template <int kTilesN, int kStages>
constexpr std::size_t multistage_shared_bytes(int warps) {
  return static_cast<std::size_t>(warps) * (kStages * kStageBytes + 2 * partial_sums_bytes<kTilesN>(1));
}

// One warp's stages. tile_at(n) is the block's n-th tile; the warp consumes its slices warp, warp +
// warps … of the inputs.
template <typename T, int kStages, class TileAt>
class WeightPipeline {
 public:
  __device__ __forceinline__ WeightPipeline(const TileAt& tile_at, unsigned char* memory)
      : tile_at_(tile_at), memory_(memory), tile_(tile_at(0)), at_(first_input()) {
    advance_tile();
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) load_stage(stage);
  }

  // Waits for the next slice, loads this lane's fragments of it and refills its stage.
  __device__ __forceinline__ void consume(Vec8 (&upper)[kChunks], Vec8 (&lower)[kChunks]) {
    cp_async_wait<kStages - 1>();
    __syncwarp();
    const int group = lane_id() / 4, quad = lane_id() % 4;
    const unsigned char* row = memory_ + stage_ * kStageBytes + group * kPieces * 16;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int piece = swizzle(group, 4 * i + quad);
      upper[i] = *reinterpret_cast<const Vec8*>(row + piece);
      lower[i] = *reinterpret_cast<const Vec8*>(row + 8 * kPieces * 16 + piece);
    }
    __syncwarp();
    load_stage(stage_);
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
  }

 private:
  static __device__ __forceinline__ int first_input() {
    return warp_id() * kSliceInputs;
  }
  // Byte offset of a piece within its row; `row` may be any row of the same parity.
  static __device__ __forceinline__ int swizzle(int row, int piece) {
    return (piece ^ row % 2 * 4) * 16;
  }

  __device__ __forceinline__ void advance_tile() {
    while (tile_.w[0] != nullptr && at_ >= tile_.in) {
      tile_ = tile_at_(++tile_number_);
      at_ = first_input();
    }
  }

  // Half a warp copies a row: lanes 0 to 15 the even rows, the others the odd rows.
  __device__ __forceinline__ void load_stage(int stage) {
    if (tile_.w[0] != nullptr) {
      const int odd = lane_id() / kPieces, piece = lane_id() % kPieces, input = at_ + 8 * piece;
      const bool valid = input < tile_.in;
      unsigned char* to = memory_ + stage * kStageBytes + odd * kPieces * 16 + swizzle(odd, piece);
#pragma unroll
      for (int pair = 0; pair < kTileOuts / 2; ++pair) {
        const int half = pair / 4, row = min(pair % 4 * 2 + odd, tile_.rows[half] - 1);
        const T* from = tile_.w[half] + static_cast<std::int64_t>(row) * tile_.in + (valid ? input : 0);
        cp_async_zfill(to + pair * 2 * kPieces * 16, from, valid);
      }
      at_ += block_warps() * kSliceInputs;
      advance_tile();
    }
    cp_async_commit();
  }

  const TileAt& tile_at_;
  unsigned char* memory_;
  WeightTile<T> tile_;  // the tile to load next, from input at_ on
  int tile_number_ = 0, at_, stage_ = 0;
};

// Computes all tiles of the block. Problem has
//   kPaired                  whether a tile has outputs of two matrices
//   WeightTile<T> tile(n)    the n-th tile of the block
//   void begin(n)            row() and epilogue() now refer to tile n
//   const T* row(i)          row i of x, i < 8 · kTilesN; null if it does not exist; row 0 exists
//   void epilogue(out, i, sum, other)  called for each existing output and row; other: of the second matrix
//   bool triggers_early()    whether dependent launches are triggered before the outputs are written
// Shared memory: multistage_shared_bytes(). Waits for preceding kernels.
template <int kTilesN, int kStages, typename T, class Problem>
__device__ __forceinline__ void multistage_gemm(Problem& problem) {
  constexpr int kRows = 8 * kTilesN, kPartial = kTileOuts * kRows;
  if (problem.triggers_early()) trigger_dependent_launch();
  const int lane = lane_id(), warp = warp_id();
  const int warps = block_warps(), group = lane / 4, quad = lane % 4;
  auto* memory = static_cast<unsigned char*>(shared_memory());
  auto* partials = reinterpret_cast<float*>(memory + warps * kStages * kStageBytes);
  const auto tile_at = [&problem](int n) { return problem.tile(n); };
  WeightPipeline<T, kStages, decltype(tile_at)> pipeline(tile_at, memory + warp * kStages * kStageBytes);
  WeightTile<T> tile = problem.tile(0);
  problem.begin(0);
  grid_dependency_wait();

  for (int n = 0; tile.w[0] != nullptr;) {
    const T* x[kTilesN];
#pragma unroll
    for (int c = 0; c < kTilesN; ++c) {
      // Rows beyond the last repeat the first, so that no load depends on a branch.
      const T* existing = problem.row(8 * c + group);
      x[c] = existing != nullptr ? existing : problem.row(0);
    }
    float sum[kTilesN][4] = {};
    for (int k = warp * kSliceInputs; k < tile.in; k += warps * kSliceInputs) {
      Vec8 part[kChunks][kTilesN], upper[kChunks], lower[kChunks];
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
#pragma unroll
        for (int c = 0; c < kTilesN; ++c) part[i][c] = load8<true>(x[c], k + i * kChunk + quad * 8, tile.in);
      pipeline.consume(upper, lower);
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
#pragma unroll
        for (int c = 0; c < kTilesN; ++c) mma_k32<T>(upper[i], lower[i], part[i][c], sum[c]);
    }

    // Double-buffered: a warp may write the next tile's sums while others read these.
    float* all = partials + n % 2 * warps * kPartial;
    float* mine = all + warp * kPartial;  // [row][out]
#pragma unroll
    for (int c = 0; c < kTilesN; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        mine[(8 * c + 2 * quad + i % 2) * kTileOuts + group + i / 2 * 8] = sum[c][i];
    __syncthreads();
    constexpr int kOuts = Problem::kPaired ? kTileOuts / 2 : kTileOuts;
    for (int i = thread_id(); i < kOuts * kRows; i += block_size()) {
      const int out = i % kOuts, r = i / kOuts;
      if (out >= tile.outs || problem.row(r) == nullptr) continue;
      const float* parts = all + r * kTileOuts + out;
      float total = 0, paired = 0;
      for (int other = 0; other < warps; ++other) {
        total += parts[other * kPartial];
        if constexpr (Problem::kPaired) paired += parts[other * kPartial + kOuts];
      }
      problem.epilogue(tile.first_out + out, r, total, paired);
    }
    tile = problem.tile(++n);
    if (tile.w[0] != nullptr) problem.begin(n);
  }
  cp_async_wait<0>();
}

}  // namespace ptrt::cuda
