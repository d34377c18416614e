#include <algorithm>
#include <type_traits>

#include "kernels/cuda/base/collective_memory.h"
#include "kernels/cuda/base/gate.cuh"
#include "kernels/cuda/base/per_track.h"
#include "kernels/cuda/matmul/multistage_gemm.cuh"
#include "kernels/cuda/matmul/skinny_gemm.h"

namespace ptrt::cuda {
namespace {

// A kernel's first read of each cache line of its arguments is slow: what every block needs comes
// first.
template <typename T>
struct GemmJob {
  const T* x;
  void* y;
  std::int64_t x_stride, y_stride;  // between tracks
  int in, outs;
  bool y_is_fp32;
  PerTrack<T> weights;
};

template <typename T>
struct BiasedJob : GemmJob<T> {
  PerTrack<float> bias;  // null: none
};

// Job: GemmJob, or BiasedJob if one of them has a bias.
template <typename Type, class OneJob = GemmJob<Type>>
struct SkinnyArgs {
  using T = Type;
  using Job = OneJob;
  int rows = 0, tiles = 0, warps = 1;  // tiles: per track
  int end_tile[kSkinnyJobs] = {};      // of each job, counted over all jobs of a track
  bool triggers_early = true;
  Job jobs[kSkinnyJobs];
};
template <typename T>
using BiasedArgs = SkinnyArgs<T, BiasedJob<T>>;

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

template <typename T>
__device__ __forceinline__ std::int64_t output_offset(const GemmJob<T>& job, int track, int row, int out) {
  return track * job.y_stride + static_cast<std::int64_t>(row) * job.outs + out;
}
template <typename T>
__device__ __forceinline__ float with_bias(const GemmJob<T>&, int, int, float sum) {
  return sum;
}
template <typename T>
__device__ __forceinline__ float with_bias(const BiasedJob<T>& job, int track, int out, float sum) {
  const float* bias = job.bias.at[track];
  return bias == nullptr ? sum : sum + bias[out];
}
template <typename T>
__device__ __forceinline__ void store_output(const GemmJob<T>& job, int track, int row, int out, float sum) {
  const std::int64_t at = output_offset(job, track, row, out);
  if (job.y_is_fp32)
    static_cast<float*>(job.y)[at] = sum;
  else
    store(static_cast<T*>(job.y) + at, sum);
}

// Few rows: the persistent blocks share the tiles of all jobs and tracks.
template <class Args>
struct GroupedProblem {
  using T = typename Args::T;
  using Job = typename Args::Job;
  static constexpr bool kPaired = false;
  const Args& args;
  int units;  // tiles of all jobs and tracks
  const Job* job = nullptr;
  int track = 0;

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
  __device__ __forceinline__ WeightTile<T> tile(int n) const {
    const int unit = unit_of(n);
    if (unit >= units) return {};
    int within = unit % args.tiles;
    const Job& of = find(within);
    return tile_of(of.weights.at[unit / args.tiles], of.in, of.outs, within * kTileOuts);
  }
  __device__ __forceinline__ void begin(int n) {
    int within = unit_of(n) % args.tiles;
    job = &find(within);
    track = unit_of(n) / args.tiles;
  }
  __device__ __forceinline__ const T* row(int i) const {
    return InputRows<T>{job->x + track * job->x_stride, 0, args.rows, job->in}(i);
  }
  __device__ __forceinline__ void epilogue(int out, int i, float sum, float) const {
    store_output(*job, track, i, out, with_bias(*job, track, out, sum));
  }
};

template <class Args, int kTilesN, int kStages>
__global__ void __launch_bounds__(kMaxSliceKWarps* kWarpSize, kMultistageBlocks)
    skinny_gemm_kernel(Args args, int units) {
  GroupedProblem<Args> problem{args, units};
  multistage_gemm<kTilesN, kStages, typename Args::T>(problem);
}

// gate(…) · up: a tile has 8 outputs of the gate's matrix and the same 8 of up's.
template <typename T, class Gate>
struct GatedProblem {
  static constexpr bool kPaired = true;
  const SkinnyArgs<T>& args;
  int units;  // tiles of all tracks
  int track = 0;

  __device__ __forceinline__ bool triggers_early() const { return args.triggers_early; }

  __device__ __forceinline__ int unit_of(int n) const {
    return static_cast<int>(blockIdx.x) + n * static_cast<int>(gridDim.x);
  }
  __device__ __forceinline__ WeightTile<T> tile(int n) const {
    const int unit = unit_of(n);
    if (unit >= units) return {};
    const int of_track = unit / args.tiles;
    const GemmJob<T>&gate = args.jobs[0], &up = args.jobs[1];
    return tile_of_pair(gate.weights.at[of_track], up.weights.at[of_track], gate.in, gate.outs,
                        unit % args.tiles * (kTileOuts / 2));
  }
  __device__ __forceinline__ void begin(int n) { track = unit_of(n) / args.tiles; }
  __device__ __forceinline__ const T* row(int i) const {
    const GemmJob<T>& gate = args.jobs[0];
    return InputRows<T>{gate.x + track * gate.x_stride, 0, args.rows, gate.in}(i);
  }
  __device__ __forceinline__ void epilogue(int out, int i, float gate, float up) const {
    store_output(args.jobs[0], track, i, out, Gate::of(gate) * up);
  }
};

template <typename T, class Gate, int kTilesN, int kStages>
__global__ void __launch_bounds__(kMaxSliceKWarps* kWarpSize, kMultistageBlocks)
    skinny_gated_gemm_kernel(SkinnyArgs<T> args, int units) {
  GatedProblem<T, Gate> problem{args, units};
  multistage_gemm<kTilesN, kStages, T>(problem);
}

// Many rows, or inputs that are not a multiple of 8. Grid: x over tiles of 16 outputs of all jobs,
// y over tracks, z over groups of 8 · kTilesN rows.
template <class Args, int kTilesN, bool kAligned>
__global__ void __launch_bounds__(kMaxSliceKWarps* kWarpSize, 1) tiled_gemm_kernel(Args args) {
  using T = typename Args::T;
  pdl_trigger_and_wait(args.triggers_early);
  const int tile = static_cast<int>(blockIdx.x), track = static_cast<int>(blockIdx.y);
  const int first_row = static_cast<int>(blockIdx.z) * 8 * kTilesN;
  int index = 0, first_tile = 0;
  while (tile >= args.end_tile[index]) first_tile = args.end_tile[index++];
  const typename Args::Job& job = args.jobs[index];
  const InputRows<T> row{job.x + track * job.x_stride, first_row, args.rows, job.in};
  const auto epilogue = [&](int out, int i, float sum) {
    store_output(job, track, first_row + i, out, with_bias(job, track, out, sum));
  };
  gemm_tile<kTilesN, kAligned>(job.weights.at[track], job.in, job.outs, (tile - first_tile) * kTileOuts, row,
                               static_cast<float*>(shared_memory()), epilogue);
}

template <typename T, class Job>
Job gemm_job(const LinearJob& job, std::int64_t first_track, std::int64_t tracks) {
  Job made{};
  made.weights = per_track<T>(*job.weights, first_track, tracks);
  made.x_stride = job.x.tracks == 1 ? 0 : job.x.track_stride;
  made.y_stride = job.y.track_stride;
  made.x = static_cast<const T*>(job.x.data) + first_track * made.x_stride;
  made.y_is_fp32 = job.y.dtype == DType::float32;
  made.y = static_cast<std::byte*>(job.y.data) +
           first_track * made.y_stride * static_cast<std::int64_t>(size_of(job.y.dtype));
  made.in = static_cast<int>(job.x.width);
  made.outs = static_cast<int>(job.y.width);
  if constexpr (std::is_same_v<Job, BiasedJob<T>>)
    if (job.bias != nullptr) made.bias = per_track<float>(*job.bias, first_track, tracks);
  return made;
}

template <class Args>
Args make_args(std::span<const LinearJob> jobs, std::int64_t first_track, std::int64_t tracks) {
  using T = typename Args::T;
  Args args{};
  args.rows = static_cast<int>(jobs[0].y.rows);
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    args.jobs[i] = gemm_job<T, typename Args::Job>(jobs[i], first_track, tracks);
    args.tiles += ceil_div(args.jobs[i].outs, kTileOuts);
    args.end_tile[i] = args.tiles;
    args.warps = std::max(args.warps, slice_k_warps(args.jobs[i].in));
    args.triggers_early = args.triggers_early && may_trigger_early(jobs[i].y.data);
  }
  return args;
}

// Launches Kernels::of<kTilesN, kStages>() with as many blocks as fit on the device, at most one
// per tile.
template <class Kernels, class Args>
void launch_multistage(const Args& args, int units, cudaStream_t stream) {
  const auto run = [&]<int kTilesN, int kStages>() {
    const std::size_t shared_bytes = multistage_shared_bytes<kTilesN, kStages>(args.warps);
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
  // Two blocks per multiprocessor are worth more than a third stage.
  if (device_traits().blocks_per_multiprocessor(multistage_shared_bytes<2, 3>(kMaxSliceKWarps)) >=
      kMultistageBlocks)
    with_tiles_n.template operator()<3>();
  else
    with_tiles_n.template operator()<2>();
}

template <class Args>
struct GroupedKernels {
  static constexpr const char* kName = "skinny_gemm";
  template <int kTilesN, int kStages>
  static auto of() {
    return skinny_gemm_kernel<Args, kTilesN, kStages>;
  }
};
template <typename T, class Gate>
struct GatedKernels {
  static constexpr const char* kName = "skinny_gated_gemm";
  template <int kTilesN, int kStages>
  static auto of() {
    return skinny_gated_gemm_kernel<T, Gate, kTilesN, kStages>;
  }
};

template <int kTilesN, bool kAligned, class Args>
void launch_tiles(const Args& args, std::int64_t tracks, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(args.tiles), static_cast<unsigned>(tracks),
                    static_cast<unsigned>(ceil_div(args.rows, 8 * kTilesN)));
  launch({"tiled_gemm", blocks, dim3(static_cast<unsigned>(args.warps * kWarpSize)), stream,
          partial_sums_bytes<kTilesN>(args.warps)},
         tiled_gemm_kernel<Args, kTilesN, kAligned>, args);
}

template <class Args>
void run_gemm(std::span<const LinearJob> jobs, cudaStream_t stream) {
  const bool aligned = std::ranges::all_of(jobs, [](const LinearJob& job) { return job.x.width % 8 == 0; });
  for_track_groups(jobs[0].y.tracks, [&](std::int64_t first, std::int64_t count) {
    const Args args = make_args<Args>(jobs, first, count);
    if (!aligned)
      launch_tiles<4, false>(args, count, stream);
    else if (args.rows <= kSkinnyRows)
      launch_multistage<GroupedKernels<Args>>(args, args.tiles * static_cast<int>(count), stream);
    else
      launch_tiles<8, true>(args, count, stream);
  });
}

template <typename T, class Gate>
void run_gated(std::span<const LinearJob> gate_and_up, cudaStream_t stream) {
  for_track_groups(gate_and_up[0].y.tracks, [&](std::int64_t first, std::int64_t count) {
    auto args = make_args<SkinnyArgs<T>>(gate_and_up, first, count);
    args.tiles = ceil_div(args.jobs[0].outs, kTileOuts / 2);
    launch_multistage<GatedKernels<T, Gate>>(args, args.tiles * static_cast<int>(count), stream);
  });
}

}  // namespace

void skinny_gemm(std::span<const LinearJob> jobs, cudaStream_t stream) {
  const bool biased = std::ranges::any_of(jobs, [](const LinearJob& job) { return job.bias != nullptr; });
  dispatch_dtype(jobs[0].x.dtype, [&]<typename T>(TypeTag<T>) {
    (biased ? run_gemm<BiasedArgs<T>> : run_gemm<SkinnyArgs<T>>)(jobs, stream);
  });
}

void skinny_gated_gemm(FfnActivation activation, const LinearJob& gate, const LinearJob& up,
                       cudaStream_t stream) {
  const LinearJob jobs[] = {gate, up};
  dispatch_dtype(gate.x.dtype, [&]<typename T>(TypeTag<T>) {
    dispatch_gate(activation, [&]<class Gate>() { run_gated<T, Gate>(jobs, stream); });
  });
}

}  // namespace ptrt::cuda
