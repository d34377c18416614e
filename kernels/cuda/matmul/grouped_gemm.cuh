// Experts' products with many rows each: tiles of 128 slots by 128 outputs, whose factors pass through
// shared memory in a ring of cp.async stages to mma.sync. A tile lies within one expert; its rows of
// x are gathered. Per byte that a block reads from L2 it computes 64 FLOP; gemm_tile.cuh, which
// is made for few rows, 13.
//
// Stages hold rows of 64 elements (128 bytes), whose 16-byte pieces are permuted so that neither
// copies nor ldmatrix have bank conflicts.
#pragma once

#include "kernels/cuda/base/gate.cuh"
#include "kernels/cuda/base/per_track.h"
#include "kernels/cuda/ptx/cp_async.cuh"
#include "kernels/cuda/ptx/mma.cuh"

namespace ptrt::cuda {

// Of weights with elements W: T, Int8 or Float8.
template <typename T, typename W = T>
struct ExpertJob {
  PerTrack<W> weights;    // [experts, outs, in]
  PerTrack<void> scales;  // of 8-bit weights
  const T* x;
  T* y;
  std::int64_t x_stride, y_stride;
};

template <typename T, typename W = T>
struct ExpertArgs {
  ExpertJob<T, W> jobs[2];  // of equal sizes
  const std::int32_t *grouped_slots, *expert_begin;
  int in, outs, experts, slots;
  int slots_per_row;  // how many slots share a row of x
};

inline constexpr int kGroupedRows = 128, kGroupedOuts = 128, kGroupedK = 64;  // of a tile; of a stage
inline constexpr int kGroupedThreads = 256, kGroupedStages = 3;
inline constexpr int kGroupedFactorBytes = 128 * kGroupedK * 2;  // of one factor in a stage
inline constexpr std::size_t kGroupedSharedBytes = std::size_t{kGroupedStages} * 2 * kGroupedFactorBytes;

// The gate of products that have none.
struct NoGate {};

// Slots [first, end) of the list grouped by expert, of one expert; expert -1: there are none.
struct RowTile {
  int expert = -1, first = 0, end = 0;
};

// Tile `index` of all experts' tiles. All lanes of the warp call it.
__device__ __forceinline__ RowTile find_row_tile(const std::int32_t* expert_begin, int experts, int index) {
  const int lane = lane_id();
  for (int first = 0; first < experts; first += kWarpSize) {
    const int begin = expert_begin[min(first + lane, experts)],
              end = expert_begin[min(first + lane + 1, experts)];
    const int tiles = ceil_div(end - begin, kGroupedRows);
    int up_to = tiles;  // of this expert and those before it
#pragma unroll
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const int before = __shfl_up_sync(kAllLanes, up_to, static_cast<unsigned>(distance));
      if (lane >= distance) up_to += before;
    }
    if (const unsigned after = __ballot_sync(kAllLanes, up_to > index ? 1 : 0); after != 0) {
      const int found = __ffs(static_cast<int>(after)) - 1;
      const int slot = begin + (index - (up_to - tiles)) * kGroupedRows;
      const int first_slot = __shfl_sync(kAllLanes, slot, found), last = __shfl_sync(kAllLanes, end, found);
      return {first + found, first_slot, min(first_slot + kGroupedRows, last)};
    }
    index -= __shfl_sync(kAllLanes, up_to, kWarpSize - 1);
  }
  return {};
}

// Byte offset in a factor's stage of element `column`, a multiple of 8, of a row.
__device__ __forceinline__ int stage_offset(int row, int column) {
  return row * (kGroupedK * 2) + (column / 8 ^ row % 8) * 16;
}

// A block's tile. With a gate, columns [32 · c, 32 · c + 16) are outputs 16 · c … of the first job,
// the 16 after them the same outputs of the second, so that a warp has both of a pair.
template <typename T, class Gate>
class GroupedTile {
 public:
  static constexpr bool kGated = !std::is_same_v<Gate, NoGate>;
  static constexpr int kOuts = kGated ? kGroupedOuts / 2 : kGroupedOuts;

  __device__ __forceinline__ GroupedTile(const ExpertArgs<T>& args, const RowTile& tile, int track,
                                         char* memory)
      : args_(args), tile_(tile), track_(track), memory_(memory) {
#pragma unroll
    for (int n = 0; n < kCopies; ++n) {
      const int slot = tile.first + copied_row() + n * kCopyStep;
      x_row_[n] = slot < tile.end ? slots()[slot] / args.slots_per_row : -1;
    }
    const T* w = args.jobs[kGated ? copied_row() / 16 : 0].weights.at[track];
    w_ = w + (static_cast<std::int64_t>(tile.expert) * args.outs + copied_out()) * args.in + copied_column();
  }

  __device__ __forceinline__ void run() {
    const int steps = ceil_div(args_.in, kGroupedK);
    for (int step = 0; step < kGroupedStages - 1; ++step) load_stage(step, steps);
    for (int step = 0; step < steps; ++step) {
      cp_async_wait<kGroupedStages - 2>();
      __syncthreads();  // the stage has landed, and nobody reads the one before it any more
      load_stage(step + kGroupedStages - 1, steps);
      multiply(memory_ + step % kGroupedStages * 2 * kGroupedFactorBytes);
    }
    cp_async_wait<0>();
    store_outputs();
  }

 private:
  static constexpr int kCopies = 128 * (kGroupedK / 8) / kGroupedThreads;  // of a thread, stage and factor
  static constexpr int kWarpRows = 64, kWarpColumns = 32;                  // two warps by four
  static constexpr int kRowTiles = kWarpRows / 16, kColumnTiles = kWarpColumns / 8;

  static __device__ __forceinline__ int first_row() {
    return warp_id() % 2 * kWarpRows;
  }
  static __device__ __forceinline__ int first_column() {
    return warp_id() / 2 * kWarpColumns;
  }
  static __device__ __forceinline__ int first_out() {
    return static_cast<int>(blockIdx.x) * kOuts;
  }
  // A thread copies pieces of every 32nd row, from this one on; with a gate, they are every 16th output of
  // one of the two matrices.
  static constexpr int kCopyStep = kGroupedThreads / 8, kOutStep = kGated ? kCopyStep / 2 : kCopyStep;
  static __device__ __forceinline__ int copied_row() {
    return thread_id() / 8;
  }
  static __device__ __forceinline__ int copied_column() {
    return thread_id() % 8 * 8;
  }
  static __device__ __forceinline__ int copied_out() {
    return first_out() + copied_row() % kOutStep;
  }
  __device__ __forceinline__ const std::int32_t* slots() const {
    return args_.grouped_slots + static_cast<std::int64_t>(track_) * args_.slots;
  }

  // Starts the copies of a step; zeros beyond the ends of rows, columns and inputs.
  __device__ __forceinline__ void load_stage(int step, int steps) const {
    if (step < steps) {
      char* x_to = memory_ + step % kGroupedStages * 2 * kGroupedFactorBytes;
      char* w_to = x_to + kGroupedFactorBytes;
      const int at = step * kGroupedK + copied_column();
      const bool inside = at < args_.in;
      const T* x = args_.jobs[0].x + track_ * args_.jobs[0].x_stride;
#pragma unroll
      for (int n = 0; n < kCopies; ++n) {
        const int to = stage_offset(copied_row() + n * kCopyStep, copied_column());
        const bool x_exists = inside && x_row_[n] >= 0;
        const bool w_exists = inside && copied_out() + n * kOutStep < args_.outs;
        const T* w = w_ + static_cast<std::int64_t>(n) * kOutStep * args_.in + step * kGroupedK;
        cp_async_zfill(x_to + to, x_exists ? x + static_cast<std::int64_t>(x_row_[n]) * args_.in + at : x,
                       x_exists);
        cp_async_zfill(w_to + to, w_exists ? w : x, w_exists);
      }
    }
    cp_async_commit();
  }

  __device__ __forceinline__ void multiply(const char* x) {
    const char* w = x + kGroupedFactorBytes;
    const int lane = lane_id();
// More would spill.
#pragma unroll 2
    for (int k = 0; k < kGroupedK; k += 16) {
      std::uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
        ldmatrix_x4(a[m], x + stage_offset(first_row() + m * 16 + lane % 16, k + lane / 16 * 8));
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        std::uint32_t b[4];
        ldmatrix_x4(
            b, w + stage_offset(first_column() + n * 8 + lane % 8 + lane / 16 * 8, k + lane / 8 % 2 * 8));
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_m16n8k16<T>(sum_[m][n], a[m], {b[0], b[1]});
          mma_m16n8k16<T>(sum_[m][n + 1], a[m], {b[2], b[3]});
        }
      }
    }
  }

  __device__ __forceinline__ void store_outputs() const {
    const ExpertJob<T>& job = args_.jobs[0];
    const int group = lane_id() / 4, quad = lane_id() % 4;
    T* y = job.y + track_ * job.y_stride;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int slot = tile_.first + first_row() + m * 16 + group + 8 * half;
        if (slot >= tile_.end) continue;
        T* row = y + static_cast<std::int64_t>(slots()[slot]) * args_.outs;
#pragma unroll
        for (int n = 0; n < (kGated ? kColumnTiles / 2 : kColumnTiles); ++n) {
          const int out = first_out() + first_column() / (kGated ? 2 : 1) + n * 8 + 2 * quad;
          float pair[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) pair[i] = value(m, n, 2 * half + i);
          store_pair(row, out, pair);
        }
      }
  }
  __device__ __forceinline__ float value(int m, int n, int i) const {
    if constexpr (kGated)
      return Gate::of(sum_[m][n][i]) * sum_[m][n + 2][i];
    else
      return sum_[m][n][i];
  }
  // Elements `out` and `out` + 1 of a row, of which there are `outs`; at once where rows are aligned.
  __device__ __forceinline__ void store_pair(T* row, int out, const float (&pair)[2]) const {
    if (out >= args_.outs) return;
    if (reinterpret_cast<std::uintptr_t>(row) % 4 == 0 && out + 1 < args_.outs) {
      *reinterpret_cast<std::uint32_t*>(row + out) = pack<T>(pair[0], pair[1]);
      return;
    }
    store(row + out, pair[0]);
    if (out + 1 < args_.outs) store(row + out + 1, pair[1]);
  }

  const ExpertArgs<T>& args_;
  RowTile tile_;
  int track_;
  char* memory_;
  int x_row_[kCopies];  // that this thread copies; -1: beyond the end
  const T* w_;          // the first output that it copies
  float sum_[kRowTiles][kColumnTiles][4] = {};
};

// Grid: x over tiles of outputs, y over at least as many tiles of slots as there can be, z over tracks.
// A row's inputs are a multiple of eight elements.
template <typename T, class Gate>
__global__ void __launch_bounds__(kGroupedThreads, 2) grouped_gemm_kernel(ExpertArgs<T> args) {
  pdl_trigger_and_wait();
  const int track = static_cast<int>(blockIdx.z);
  const RowTile tile = find_row_tile(args.expert_begin + track * (args.experts + 1), args.experts,
                                     static_cast<int>(blockIdx.y));
  if (tile.expert < 0) return;
  GroupedTile<T, Gate>(args, tile, track, static_cast<char*>(shared_memory())).run();
}

template <class Gate, typename T>
void launch_grouped_gemm(const ExpertArgs<T>& args, std::int64_t tracks, cudaStream_t stream) {
  // Each expert has at most one tile that is not full.
  const dim3 grid(static_cast<unsigned>(ceil_div(args.outs, GroupedTile<T, Gate>::kOuts)),
                  static_cast<unsigned>(args.slots / kGroupedRows + args.experts),
                  static_cast<unsigned>(tracks));
  launch({"grouped_gemm", grid, dim3(kGroupedThreads), stream, kGroupedSharedBytes},
         grouped_gemm_kernel<T, Gate>, args);
}

}  // namespace ptrt::cuda
