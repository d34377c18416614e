#include <algorithm>

#include "kernels/cuda/base/per_track.h"
#include "kernels/cuda/matmul/matmul.h"
#include "kernels/cuda/matmul/product_ring.cuh"

namespace ptrt::cuda {
namespace {

// Arguments lie in memory that a kernel's first look at is slow, line by line: what every block needs comes
// first.
template <typename T>
struct Job {
  const T* x;
  void* y;
  std::int64_t x_stride, y_stride;  // between tracks
  int in, outs;
  bool exact;  // y is float32
  PerTrack<T> weights;
};

template <typename T>
struct SkinnyArgs {
  int rows = 0, tiles = 0, warps = 1;  // tiles: of a track
  int end_tile[kSkinnyJobs] = {};      // of a job, counted over the jobs before it too
  Job<T> jobs[kSkinnyJobs];
};

// Rows of x that a block takes from `first_row` on, as product_tile() asks for them.
template <typename T>
struct Rows {
  const T* x;
  int first_row, rows, in;
  __device__ __forceinline__ const T* operator()(int i) const {
    const int r = first_row + i;
    return r < rows ? x + static_cast<std::int64_t>(r) * in : nullptr;
  }
};

template <typename T>
__device__ __forceinline__ std::int64_t place_of(const Job<T>& job, int track, int row, int out) {
  return track * job.y_stride + static_cast<std::int64_t>(row) * job.outs + out;
}
template <typename T>
__device__ __forceinline__ void put_sum(const Job<T>& job, int track, int row, int out, float sum) {
  const std::int64_t at = place_of(job, track, row, out);
  if (job.exact)
    static_cast<float*>(job.y)[at] = sum;
  else
    store(static_cast<T*>(job.y) + at, sum);
}

// Few rows: blocks go through the tiles of all jobs and tracks.
template <typename T>
struct RingWork {
  static constexpr bool kPaired = false;
  const SkinnyArgs<T>& args;
  int units;  // tiles of all jobs and tracks
  const Job<T>* job = nullptr;
  int track = 0;

  // The job that tile `tile` of a track is of; `tile` becomes its number within the job.
  __device__ __forceinline__ const Job<T>& find(int& tile) const {
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
    const Job<T>& of = find(within);
    return tile_of(of.weights.at[unit / args.tiles], of.in, of.outs, within * kTileOuts);
  }
  __device__ __forceinline__ void begin(int n) {
    int within = unit_of(n) % args.tiles;
    job = &find(within);
    track = unit_of(n) / args.tiles;
  }
  __device__ __forceinline__ const T* row(int i) const {
    return Rows<T>{job->x + track * job->x_stride, 0, args.rows, job->in}(i);
  }
  __device__ __forceinline__ void put(int out, int i, float sum, float) const {
    put_sum(*job, track, i, out, sum);
  }
};

template <typename T, int kColumns, int kStages>
__global__ void __launch_bounds__(kMaxProductWarps* kWarp, kRingBlocks)
    ring_kernel(SkinnyArgs<T> args, int units) {
  RingWork<T> work{args, units};
  ring_products<kColumns, kStages, T>(work);
}

// As RingWork, of a pair of products: tiles have as many outputs of the one as of the other.
template <typename T>
struct GatedWork {
  static constexpr bool kPaired = true;
  const SkinnyArgs<T>& args;
  int units;  // tiles of all tracks
  int track = 0;

  __device__ __forceinline__ int unit_of(int n) const {
    return static_cast<int>(blockIdx.x) + n * static_cast<int>(gridDim.x);
  }
  __device__ __forceinline__ WeightTile<T> tile(int n) const {
    const int unit = unit_of(n);
    if (unit >= units) return {};
    const int of_track = unit / args.tiles;
    const Job<T>&gate = args.jobs[0], &up = args.jobs[1];
    return tile_of_pair(gate.weights.at[of_track], up.weights.at[of_track], gate.in, gate.outs,
                        unit % args.tiles * (kTileOuts / 2));
  }
  __device__ __forceinline__ void begin(int n) { track = unit_of(n) / args.tiles; }
  __device__ __forceinline__ const T* row(int i) const {
    const Job<T>& gate = args.jobs[0];
    return Rows<T>{gate.x + track * gate.x_stride, 0, args.rows, gate.in}(i);
  }
  __device__ __forceinline__ void put(int out, int i, float gate, float up) const {
    put_sum(args.jobs[0], track, i, out, silu(gate) * up);
  }
};

template <typename T, int kColumns, int kStages>
__global__ void __launch_bounds__(kMaxProductWarps* kWarp, kRingBlocks)
    gated_kernel(SkinnyArgs<T> args, int units) {
  GatedWork<T> work{args, units};
  ring_products<kColumns, kStages, T>(work);
}

// Many rows, or sizes that are no multiples of 8. Grid: x over tiles of 16 outputs of all jobs, y over
// tracks, z over groups of 8 · kColumns rows.
template <typename T, int kColumns, bool kWhole>
__global__ void __launch_bounds__(kMaxProductWarps* kWarp, 1) tile_kernel(SkinnyArgs<T> args) {
  begin_kernel();
  const int tile = static_cast<int>(blockIdx.x), track = static_cast<int>(blockIdx.y);
  const int first_row = static_cast<int>(blockIdx.z) * 8 * kColumns;
  int index = 0, first_tile = 0;
  while (tile >= args.end_tile[index]) first_tile = args.end_tile[index++];
  const Job<T>& job = args.jobs[index];
  const Rows<T> row{job.x + track * job.x_stride, first_row, args.rows, job.in};
  const auto put = [&](int out, int i, float sum) { put_sum(job, track, first_row + i, out, sum); };
  product_tile<kColumns, kWhole>(job.weights.at[track], job.in, job.outs, (tile - first_tile) * kTileOuts,
                                 row, static_cast<float*>(shared_memory()), put);
}

template <typename T>
Job<T> make_job(const LinearJob& job, std::int64_t first_track, std::int64_t tracks) {
  Job<T> made{};
  made.weights = per_track<T>(*job.weights, first_track, tracks);
  made.x_stride = job.x.tracks == 1 ? 0 : job.x.track_stride;
  made.y_stride = job.y.track_stride;
  made.x = static_cast<const T*>(job.x.data) + first_track * made.x_stride;
  made.exact = job.y.dtype == DType::float32;
  made.y = static_cast<std::byte*>(job.y.data) +
           first_track * made.y_stride * static_cast<std::int64_t>(size_of(job.y.dtype));
  made.in = static_cast<int>(job.x.width);
  made.outs = static_cast<int>(job.y.width);
  return made;
}

template <typename T>
SkinnyArgs<T> make_args(std::span<const LinearJob> jobs, std::int64_t first_track, std::int64_t tracks) {
  SkinnyArgs<T> args{};
  args.rows = static_cast<int>(jobs[0].y.rows);
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    args.jobs[i] = make_job<T>(jobs[i], first_track, tracks);
    args.tiles += ceil_div(args.jobs[i].outs, kTileOuts);
    args.end_tile[i] = args.tiles;
    args.warps = std::max(args.warps, product_warps(args.jobs[i].in));
  }
  return args;
}

// Launches Kernels::of<kColumns, kStages>(), as many blocks as have work and find room.
template <class Kernels, typename T>
void launch_ring(const SkinnyArgs<T>& args, int units, cudaStream_t stream) {
  const auto run = [&]<int kColumns, int kStages>() {
    const std::size_t shared_bytes = ring_shared_bytes<kColumns, kStages>(args.warps);
    const int on_each = std::clamp(device_traits().blocks_with(shared_bytes), 1, kRingBlocks);
    const int blocks = std::min(units, device_traits().multiprocessors * on_each);
    launch({Kernels::kName, dim3(static_cast<unsigned>(blocks)),
            dim3(static_cast<unsigned>(args.warps * kWarp)), stream, shared_bytes},
           Kernels::template of<kColumns, kStages>(), args, units);
  };
  const auto with_columns = [&]<int kStages>() {
    args.rows <= 8 ? run.template operator()<1, kStages>() : run.template operator()<2, kStages>();
  };
  // Rather two stages than one block on a multiprocessor.
  if (device_traits().blocks_with(ring_shared_bytes<2, 3>(kMaxProductWarps)) >= kRingBlocks)
    with_columns.template operator()<3>();
  else
    with_columns.template operator()<2>();
}

template <typename T>
struct RingKernels {
  static constexpr const char* kName = "ring_product";
  template <int kColumns, int kStages>
  static auto of() {
    return ring_kernel<T, kColumns, kStages>;
  }
};
template <typename T>
struct GatedKernels {
  static constexpr const char* kName = "gated_product";
  template <int kColumns, int kStages>
  static auto of() {
    return gated_kernel<T, kColumns, kStages>;
  }
};

template <int kColumns, bool kWhole, typename T>
void launch_tiles(const SkinnyArgs<T>& args, std::int64_t tracks, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(args.tiles), static_cast<unsigned>(tracks),
                    static_cast<unsigned>(ceil_div(args.rows, 8 * kColumns)));
  launch({"tile_product", blocks, dim3(static_cast<unsigned>(args.warps * kWarp)), stream,
          product_shared_bytes<kColumns>(args.warps)},
         tile_kernel<T, kColumns, kWhole>, args);
}

template <typename T>
void run_products(std::span<const LinearJob> jobs, cudaStream_t stream) {
  const bool whole = std::ranges::all_of(jobs, [](const LinearJob& job) { return job.x.width % 8 == 0; });
  for_track_groups(jobs[0].y.tracks, [&](std::int64_t first, std::int64_t count) {
    const SkinnyArgs<T> args = make_args<T>(jobs, first, count);
    if (!whole)
      launch_tiles<4, false>(args, count, stream);
    else if (args.rows <= kSkinnyRows)
      launch_ring<RingKernels<T>>(args, args.tiles * static_cast<int>(count), stream);
    else
      launch_tiles<8, true>(args, count, stream);
  });
}

template <typename T>
void run_gated(std::span<const LinearJob> gate_and_up, cudaStream_t stream) {
  for_track_groups(gate_and_up[0].y.tracks, [&](std::int64_t first, std::int64_t count) {
    SkinnyArgs<T> args = make_args<T>(gate_and_up, first, count);
    args.tiles = ceil_div(args.jobs[0].outs, kTileOuts / 2);
    launch_ring<GatedKernels<T>>(args, args.tiles * static_cast<int>(count), stream);
  });
}

}  // namespace

void skinny_products(std::span<const LinearJob> jobs, cudaStream_t stream) {
  with_element(jobs[0].x.dtype, [&]<typename T>(Element<T>) { run_products<T>(jobs, stream); });
}

void skinny_gated_product(const LinearJob& gate, const LinearJob& up, cudaStream_t stream) {
  const LinearJob jobs[] = {gate, up};
  with_element(gate.x.dtype, [&]<typename T>(Element<T>) { run_gated<T>(jobs, stream); });
}

}  // namespace ptrt::cuda
