// The bandwidth-bound GEMM with persistent blocks and multistage cp.async copies of the weights.
// Each block computes several of gemm_tile.cuh's tiles of 16 rows of weights. Each warp has a
// circular buffer of stages in shared memory and fills it in the order in which it consumes it,
// across the ends of tiles, so that loads of weights are always in flight. The first loads start
// before the preceding kernels have ended: no kernel writes weights.
//
// A stage is a slice of 16 rows × 128 inputs of the element type W: the activation type, Int8 or Float8
// (weight_slice.cuh).
#pragma once

#include "kernels/cuda/matmul/gemm_tile.cuh"
#include "kernels/cuda/ptx/cp_async.cuh"

namespace ptrt::cuda {

inline constexpr int kMultistageBlocks = 2;  // per multiprocessor

// Sixteen rows of weights in two halves of eight: 16 outputs of one matrix, or 8 outputs of each of
// two.
template <typename W>
struct PlainTile {
  const W* w[2] = {};  // [rows[i], in], rows 16-byte aligned, row_stride() apart; null: no tile
  int rows[2] = {};    // 1 to 8; the last one replaces missing rows
  int in = 0;
  int first_out = 0, outs = 0;  // the outputs that are stored
};
template <typename W>
struct WeightTile : PlainTile<W> {};
template <>
struct WeightTile<Int8> : PlainTile<Int8> {
  const unsigned char* scales[2] = {};  // of each half: a row of blocks
};

// Outputs [first_out, first_out + 16) of w [outs, in], up to the last.
template <typename W>
__device__ __forceinline__ WeightTile<W> tile_of(const W* w, int in, int outs, int first_out) {
  const std::int64_t stride = row_stride<W>(in);
  const W* first = w + first_out * stride;
  const int count = min(outs - first_out, kTileOuts);
  if (count <= 8) return {{{first, first}, {count, count}, in, first_out, count}};
  return {{{first, first + 8 * stride}, {8, count - 8}, in, first_out, count}};
}
// Outputs [first_out, first_out + 8) of two matrices of one size.
template <typename W>
__device__ __forceinline__ WeightTile<W> tile_of_pair(const W* a, const W* b, int in, int outs,
                                                      int first_out) {
  const std::int64_t begin = first_out * row_stride<W>(in);
  const int count = min(outs - first_out, kTileOuts / 2);
  return {{{a + begin, b + begin}, {count, count}, in, first_out, count}};
}
// The blocks of scales of rows [first_out, first_out + 8); first_out is a multiple of 8.
__device__ __forceinline__ const unsigned char* scale_row(const unsigned char* scales, int in,
                                                          int first_out) {
  return scales + first_out / kScaleRows * scale_blocks_of_row(in) * kScaleBlockBytes;
}

// Shared memory of a block: the stages, and the warps' partial sums of two tiles.
template <int kTilesN, int kStages, typename W>
constexpr std::size_t multistage_shared_bytes(int warps) {
  return static_cast<std::size_t>(warps) * (kStages * kStageBytes<W> + 2 * partial_sums_bytes<kTilesN>(1));
}

// One warp's stages. tile_at(n) is the block's n-th tile; the warp consumes its slices warp, warp +
// warps … of the inputs.
template <typename T, typename W, int kStages, class TileAt>
class WeightPipeline {
 public:
  __device__ __forceinline__ WeightPipeline(const TileAt& tile_at, unsigned char* memory)
      : tile_at_(tile_at), memory_(memory), tile_(tile_at(0)), at_(first_input()) {
    advance_tile();
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) load_stage(stage);
  }

  // Waits for the next slice, loads this lane's share of it and refills its stage.
  __device__ __forceinline__ void consume(WeightSlice<T, W>& slice) {
    cp_async_wait<kStages - 1>();
    __syncwarp();
    slice.load(memory_ + stage_ * kStageBytes<W>);
    __syncwarp();
    load_stage(stage_);
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
  }

 private:
  static __device__ __forceinline__ int first_input() {
    return warp_id() * kSliceInputs;
  }
  __device__ __forceinline__ void advance_tile() {
    while (tile_.w[0] != nullptr && at_ >= tile_.in) {
      tile_ = tile_at_(++tile_number_);
      at_ = first_input();
    }
  }

  // As many lanes as a row has pieces copy every kRowsAtOnce-th row.
  __device__ __forceinline__ void load_stage(int stage) {
    if (tile_.w[0] != nullptr) {
      constexpr int kPerPiece = 16 / int{sizeof(W)};
      const int copied = lane_id() / kPieces<W>, piece = lane_id() % kPieces<W>,
                input = at_ + kPerPiece * piece;
      const bool valid = input < tile_.in;
      unsigned char* slice = memory_ + stage * kStageBytes<W>;
      unsigned char* to = slice + copied * kPieces<W> * 16 + swizzle<W>(copied, piece);
#pragma unroll
      for (int first = 0; first < kTileOuts; first += kRowsAtOnce<W>) {
        const int half = first / 8, row = min(first % 8 + copied, tile_.rows[half] - 1);
        const W* from = tile_.w[half] + row * row_stride<W>(tile_.in) + (valid ? input : 0);
        cp_async_zfill(to + first * kPieces<W> * 16, from, valid);
      }
      if constexpr (std::is_same_v<W, Int8>) load_scales(slice + kSliceBytes<W>);
      at_ += block_warps() * kSliceInputs;
      advance_tile();
    }
    cp_async_commit();
  }
  // Blocks have no missing rows.
  __device__ __forceinline__ void load_scales(unsigned char* to) const {
    constexpr int kBlockPieces = kScaleBlockBytes / 16;
    const int lane = lane_id();
    if (lane >= 2 * kBlockPieces) return;
    const unsigned char* row = lane < kBlockPieces ? tile_.scales[0] : tile_.scales[1];
    const unsigned char* block = row + at_ / kScaleInputs * kScaleBlockBytes;
    cp_async_zfill(to + lane * 16, block + lane % kBlockPieces * 16, true);
  }

  const TileAt& tile_at_;
  unsigned char* memory_;
  WeightTile<W> tile_;  // the tile to load next, from input at_ on
  int tile_number_ = 0, at_, stage_ = 0;
};

// Computes all tiles of the block. Problem has
//   kPaired                  whether a tile has outputs of two matrices
//   WeightTile<W> tile(n)    the n-th tile of the block
//   void begin(n)            row() and epilogue() now refer to tile n
//   const T* row(i)          row i of x, i < 8 · kTilesN; null if it does not exist; row 0 exists; with
//                            kAligned as load8() has it
//   void epilogue(out, i, sum, other)  called for each existing output and row; other: of the second matrix
//   bool triggers_early()    whether dependent launches are triggered before the outputs are written
// Shared memory: multistage_shared_bytes(). Waits for preceding kernels.
template <int kTilesN, int kStages, typename T, typename W, bool kAligned, class Problem>
__device__ __forceinline__ void multistage_gemm(Problem& problem) {
  constexpr int kRows = 8 * kTilesN, kPartial = kTileOuts * kRows;
  // Chunks of x that are loaded before the weights are waited for; more would spill where weights are widened too.
  constexpr int kAhead = sizeof(W) == 1 && kTilesN == 2 ? 2 : kChunks;
  if (problem.triggers_early()) trigger_dependent_launch();
  const int lane = lane_id(), warp = warp_id();
  const int warps = block_warps(), group = lane / 4, quad = lane % 4;
  auto* memory = static_cast<unsigned char*>(shared_memory());
  auto* partials = reinterpret_cast<float*>(memory + warps * kStages * kStageBytes<W>);
  const auto tile_at = [&problem](int n) { return problem.tile(n); };
  WeightPipeline<T, W, kStages, decltype(tile_at)> pipeline(tile_at,
                                                            memory + warp * kStages * kStageBytes<W>);
  WeightTile<W> tile = problem.tile(0);
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
      Vec8 part[kChunks][kTilesN];
      const auto load_x = [&](int i) {
#pragma unroll
        for (int c = 0; c < kTilesN; ++c)
          part[i][c] = load8<kAligned>(x[c], k + i * kChunk + quad * 8, tile.in);
      };
#pragma unroll
      for (int i = 0; i < kAhead; ++i) load_x(i);
      WeightSlice<T, W> slice;
      pipeline.consume(slice);
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        if (i + kAhead < kChunks) load_x(i + kAhead);
        slice.multiply(i, part[i], sum);
      }
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
