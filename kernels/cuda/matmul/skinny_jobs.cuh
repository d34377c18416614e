// Jobs, kernels and launches of the products of few rows, over the element type W of the weights: the activation
// type T, Int8 or Float8.
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include "kernels/cuda/base/collective_memory.h"
#include "kernels/cuda/base/gate.cuh"
#include "kernels/cuda/base/per_track.h"
#include "kernels/cuda/matmul/multistage_gemm.cuh"
#include "kernels/cuda/matmul/skinny_gemm.h"

namespace ptrt::cuda {

// A kernel's first read of each cache line of its arguments is slow: what every block needs comes
// first.
template <typename T, typename W = T>
struct GemmJob {
  using Element = W;
  const T* x;
  void* y;
  std::int64_t x_stride, y_stride;  // between tracks
  int in, outs;
  bool y_is_fp32;
  PerTrack<W> weights;
};

template <typename T, typename W = T>
struct BiasedJob : GemmJob<T, W> {
  PerTrack<float> bias;  // null: none
};

// Of 8-bit weights; their scales as weight_layout.h has them.
template <typename T, typename W>
struct ScaledJob : BiasedJob<T, W> {
  PerTrack<std::conditional_t<std::is_same_v<W, Float8>, float, unsigned char>> scales;
};

// Job: GemmJob, BiasedJob if one of them has a bias, or ScaledJob.
template <typename Type, class OneJob = GemmJob<Type>>
struct SkinnyArgs {
  using T = Type;
  using Job = OneJob;
  using W = typename Job::Element;
  int rows = 0, tiles = 0, warps = 1;  // tiles: per track
  int end_tile[kSkinnyJobs] = {};      // of each job, counted over all jobs of a track
  bool triggers_early = true;
  Job jobs[kSkinnyJobs];
};

// Rows of x from `first_row` on, as gemm_tile() takes them.
template <typename T>
struct InputRows {
  const T* x;
  int first_row, rows, in;
  __device__ __forceinline__ const T* operator()(int i) const {
    const int r = first_row + i;
    return r < rows ? x + static_cast<std::int64_t>(r) * in : nullptr;
  }
};

template <typename T, typename W>
__device__ __forceinline__ std::int64_t output_offset(const GemmJob<T, W>& job, int track, int row, int out) {
  return track * job.y_stride + static_cast<std::int64_t>(row) * job.outs + out;
}
template <typename T, typename W>
__device__ __forceinline__ float with_bias(const GemmJob<T, W>&, int, int, float sum) {
  return sum;
}
template <typename T, typename W>
__device__ __forceinline__ float with_bias(const BiasedJob<T, W>& job, int track, int out, float sum) {
  const float* bias = job.bias.at[track];
  return bias == nullptr ? sum : sum + bias[out];
}
template <typename T, typename W>
__device__ __forceinline__ void store_output(const GemmJob<T, W>& job, int track, int row, int out,
                                             float sum) {
  const std::int64_t at = output_offset(job, track, row, out);
  if (job.y_is_fp32)
    static_cast<float*>(job.y)[at] = sum;
  else
    store(static_cast<T*>(job.y) + at, sum);
}

// The scale of output first_out + thread_id() % kOuts of float8 weights, which is that of all sums that a thread
// of the epilogue stores; read while the tile's weights arrive.
template <int kOuts, typename T>
__device__ __forceinline__ float scale_of_thread(const ScaledJob<T, Float8>& job, int track, int first_out) {
  return job.scales.at[track][min(first_out + thread_id() % kOuts, job.outs - 1)];
}
template <int kOuts, typename T, typename W>
__device__ __forceinline__ float scale_of_thread(const GemmJob<T, W>&, int, int) {
  return 1;
}
template <typename W>
__device__ __forceinline__ float scaled(float sum, float scale) {
  return std::is_same_v<W, Float8> ? sum * scale : sum;
}

// Few rows: the persistent blocks share the tiles of all jobs and tracks.
template <class Args>
struct GroupedProblem {
  using T = typename Args::T;
  using W = typename Args::W;
  using Job = typename Args::Job;
  static constexpr bool kPaired = false;
  const Args& args;
  int units;  // tiles of all jobs and tracks
  const Job* job = nullptr;
  int track = 0;
  float scale = 1;

  __device__ __forceinline__ bool triggers_early() const { return args.triggers_early; }

  // The job of tile `tile` of a track; `tile` becomes the index within the job.
  __device__ __forceinline__ const Job& find(int& tile) const {
    int index = 0, before = 0;
    while (tile >= args.end_tile[index]) before = args.end_tile[index++];
    tile -= before;
    return args.jobs[index];
  }
  __device__ __forceinline__ int unit_of(int n) const {
    return static_cast<int>(blockIdx.x) + n * static_cast<int>(gridDim.x);
  }
  __device__ __forceinline__ WeightTile<W> tile(int n) const {
    const int unit = unit_of(n);
    if (unit >= units) return {};
    int within = unit % args.tiles;
    const Job& of = find(within);
    const int of_track = unit / args.tiles, first_out = within * kTileOuts;
    auto found = tile_of(of.weights.at[of_track], of.in, of.outs, first_out);
    if constexpr (std::is_same_v<W, Int8>) {
      const unsigned char* scales = of.scales.at[of_track];
      found.scales[0] = scale_row(scales, of.in, first_out);
      found.scales[1] = of.outs - first_out > 8 ? scale_row(scales, of.in, first_out + 8) : found.scales[0];
    }
    return found;
  }
  __device__ __forceinline__ void begin(int n) {
    int within = unit_of(n) % args.tiles;
    job = &find(within);
    track = unit_of(n) / args.tiles;
    scale = scale_of_thread<kTileOuts>(*job, track, within * kTileOuts);
  }
  __device__ __forceinline__ const T* row(int i) const {
    return InputRows<T>{job->x + track * job->x_stride, 0, args.rows, job->in}(i);
  }
  __device__ __forceinline__ void epilogue(int out, int i, float sum, float) const {
    store_output(*job, track, i, out, with_bias(*job, track, out, scaled<W>(sum, scale)));
  }
};

template <class Args, bool kAligned, int kTilesN, int kStages>
__global__ void __launch_bounds__(kMaxSliceKWarps* kWarpSize, kMultistageBlocks)
    skinny_gemm_kernel(Args args, int units) {
  GroupedProblem<Args> problem{args, units};
  multistage_gemm<kTilesN, kStages, typename Args::T, typename Args::W, kAligned>(problem);
}

// gate(…) · up: a tile has 8 outputs of the gate's matrix and the same 8 of up's.
template <class Args, class Gate>
struct GatedProblem {
  using T = typename Args::T;
  using W = typename Args::W;
  using Job = typename Args::Job;
  static constexpr bool kPaired = true;
  static constexpr int kOuts = kTileOuts / 2;
  const Args& args;
  int units;  // tiles of all tracks
  int track = 0;
  float gate_scale = 1, up_scale = 1;

  __device__ __forceinline__ bool triggers_early() const { return args.triggers_early; }

  __device__ __forceinline__ int unit_of(int n) const {
    return static_cast<int>(blockIdx.x) + n * static_cast<int>(gridDim.x);
  }
  __device__ __forceinline__ WeightTile<W> tile(int n) const {
    const int unit = unit_of(n);
    if (unit >= units) return {};
    const int of_track = unit / args.tiles, first_out = unit % args.tiles * kOuts;
    const Job &gate = args.jobs[0], &up = args.jobs[1];
    auto found =
        tile_of_pair(gate.weights.at[of_track], up.weights.at[of_track], gate.in, gate.outs, first_out);
    if constexpr (std::is_same_v<W, Int8>) {
      found.scales[0] = scale_row(gate.scales.at[of_track], gate.in, first_out);
      found.scales[1] = scale_row(up.scales.at[of_track], gate.in, first_out);
    }
    return found;
  }
  __device__ __forceinline__ void begin(int n) {
    track = unit_of(n) / args.tiles;
    const int first_out = unit_of(n) % args.tiles * kOuts;
    gate_scale = scale_of_thread<kOuts>(args.jobs[0], track, first_out);
    up_scale = scale_of_thread<kOuts>(args.jobs[1], track, first_out);
  }
  __device__ __forceinline__ const T* row(int i) const {
    const Job& gate = args.jobs[0];
    return InputRows<T>{gate.x + track * gate.x_stride, 0, args.rows, gate.in}(i);
  }
  __device__ __forceinline__ void epilogue(int out, int i, float gate, float up) const {
    store_output(args.jobs[0], track, i, out,
                 Gate::of(scaled<W>(gate, gate_scale)) * scaled<W>(up, up_scale));
  }
};

template <class Args, class Gate, int kTilesN, int kStages>
__global__ void __launch_bounds__(kMaxSliceKWarps* kWarpSize, kMultistageBlocks)
    skinny_gated_gemm_kernel(Args args, int units) {
  GatedProblem<Args, Gate> problem{args, units};
  multistage_gemm<kTilesN, kStages, typename Args::T, typename Args::W, true>(problem);
}

// `first_row`: of x and y, from which the job's rows are taken.
template <class Job, typename T>
Job gemm_job(const LinearJob& job, std::int64_t first_track, std::int64_t tracks, std::int64_t first_row) {
  Job made{};
  made.weights = per_track<typename Job::Element>(*job.weights, first_track, tracks);
  made.x_stride = job.x.tracks == 1 ? 0 : job.x.track_stride;
  made.y_stride = job.y.track_stride;
  made.x = static_cast<const T*>(job.x.data) + first_track * made.x_stride + first_row * job.x.width;
  made.y_is_fp32 = job.y.dtype == DType::float32;
  made.y = static_cast<std::byte*>(job.y.data) + (first_track * made.y_stride + first_row * job.y.width) *
                                                     static_cast<std::int64_t>(size_of(job.y.dtype));
  made.in = static_cast<int>(job.x.width);
  made.outs = static_cast<int>(job.y.width);
  if constexpr (requires { made.bias; })
    if (job.bias != nullptr) made.bias = per_track<float>(*job.bias, first_track, tracks);
  if constexpr (requires { made.scales; })
    for (std::int64_t t = 0; t < tracks; ++t)
      made.scales.set(t, (*job.weights)[static_cast<std::size_t>(first_track + t)].scales);
  return made;
}

template <class Args>
Args make_args(std::span<const LinearJob> jobs, std::int64_t first_track, std::int64_t tracks,
               std::int64_t first_row, std::int64_t rows) {
  Args args{};
  args.rows = static_cast<int>(rows);
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    args.jobs[i] = gemm_job<typename Args::Job, typename Args::T>(jobs[i], first_track, tracks, first_row);
    args.tiles += ceil_div(args.jobs[i].outs, kTileOuts);
    args.end_tile[i] = args.tiles;
    args.warps = std::max(args.warps, slice_k_warps(args.jobs[i].in));
    args.triggers_early = args.triggers_early && may_trigger_early(jobs[i].y.data);
  }
  return args;
}

// Stages of a warp's ring: two blocks per multiprocessor with as many as fit, on a GPU with much shared memory
// and on others; about 12 and 8 KB.
template <typename W>
inline constexpr int kManyStages = std::is_same_v<W, Int8> ? 5
                                   : sizeof(W) == 1        ? 6
                                                           : 3;
template <typename W>
inline constexpr int kFewStages = std::is_same_v<W, Int8> ? 3
                                  : sizeof(W) == 1        ? 4
                                                          : 2;

// Launches Kernels::of<kTilesN, kStages>() with as many blocks as fit on the device, at most one
// per tile.
template <class Kernels, class Args>
void launch_multistage(const Args& args, int units, cudaStream_t stream) {
  using W = typename Args::W;
  const auto run = [&]<int kTilesN, int kStages>() {
    const std::size_t shared_bytes = multistage_shared_bytes<kTilesN, kStages, W>(args.warps);
    const int per_multiprocessor =
        std::clamp(device_traits().blocks_per_multiprocessor(shared_bytes), 1, kMultistageBlocks);
    const int blocks = std::min(units, device_traits().multiprocessors * per_multiprocessor);
    launch({Kernels::kName, dim3(static_cast<unsigned>(blocks)),
            dim3(static_cast<unsigned>(args.warps * kWarpSize)), stream, shared_bytes},
           Kernels::template of<kTilesN, kStages>(), args, units);
  };
  const auto with_tiles_n = [&]<int kStages>() {
    args.rows <= 8 ? run.template operator()<1, kStages>() : run.template operator()<2, kStages>();
  };
  // Two blocks per multiprocessor are worth more than more stages.
  if (device_traits().blocks_per_multiprocessor(
          multistage_shared_bytes<2, kManyStages<W>, W>(kMaxSliceKWarps)) >= kMultistageBlocks)
    with_tiles_n.template operator()<kManyStages<W>>();
  else
    with_tiles_n.template operator()<kFewStages<W>>();
}

template <class Args, bool kAligned>
struct GroupedKernels {
  static constexpr const char* kName = sizeof(typename Args::W) == 1 ? "skinny_gemm_8bit" : "skinny_gemm";
  template <int kTilesN, int kStages>
  static auto of() {
    return skinny_gemm_kernel<Args, kAligned, kTilesN, kStages>;
  }
};
template <class Args, class Gate>
struct GatedKernels {
  static constexpr const char* kName =
      sizeof(typename Args::W) == 1 ? "skinny_gated_gemm_8bit" : "skinny_gated_gemm";
  template <int kTilesN, int kStages>
  static auto of() {
    return skinny_gated_gemm_kernel<Args, Gate, kTilesN, kStages>;
  }
};

// One pass over `rows` rows, up to kSkinnyRows, from `first_row` on.
template <class Args, class Gate>
void run_gated(std::span<const LinearJob> gate_and_up, std::int64_t first_row, std::int64_t rows,
               cudaStream_t stream) {
  for_track_groups(gate_and_up[0].y.tracks, [&](std::int64_t first, std::int64_t count) {
    auto args = make_args<Args>(gate_and_up, first, count, first_row, rows);
    args.tiles = ceil_div(args.jobs[0].outs, kTileOuts / 2);
    launch_multistage<GatedKernels<Args, Gate>>(args, args.tiles * static_cast<int>(count), stream);
  });
}

}  // namespace ptrt::cuda
