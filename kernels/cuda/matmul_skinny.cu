#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_tile.cuh"
#include "kernels/cuda/per_track.h"

namespace ptrt::cuda {
namespace {

template <typename T>
struct Job {
  PerTrack<T> weights;
  const T* x;
  void* y;
  std::int64_t x_stride, y_stride;  // between tracks
  int in, outs, end_tile;           // end_tile: of this job, counted over the jobs before it too
  bool exact;                       // y is float32
};

template <typename T>
struct SkinnyArgs {
  Job<T> jobs[kSkinnyJobs];
  int rows;
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

// Grid: x over tiles of 16 outputs of all jobs, y over tracks, z over groups of 8 · kColumns rows.
template <typename T, int kColumns, bool kWhole>
__global__ void __launch_bounds__(kMaxProductWarps* kWarp, kColumns == 1 ? 3 : 1)
    skinny_kernel(SkinnyArgs<T> args) {
  const int tile = static_cast<int>(blockIdx.x), track = static_cast<int>(blockIdx.y);
  const int first_row = static_cast<int>(blockIdx.z) * 8 * kColumns;
  int index = 0, first_tile = 0;
  while (tile >= args.jobs[index].end_tile) first_tile = args.jobs[index++].end_tile;
  const Job<T>& job = args.jobs[index];
  const Rows<T> row{job.x + track * job.x_stride, first_row, args.rows, job.in};
  const auto put = [&](int out, int i, float sum) {
    const std::int64_t at = place_of(job, track, first_row + i, out);
    if (job.exact)
      static_cast<float*>(job.y)[at] = sum;
    else
      store(static_cast<T*>(job.y) + at, sum);
  };
  product_tile<kColumns, kWhole>(job.weights.at[track], job.in, job.outs, (tile - first_tile) * kTileOuts,
                                 row, static_cast<float*>(shared_memory()), put);
}

template <typename T>
struct GatedArgs {
  Job<T> gate, up;
  int rows;
};

// As skinny_kernel(), of two products whose tiles the same block takes one after the other.
template <typename T, int kColumns, bool kWhole>
__global__ void __launch_bounds__(kMaxProductWarps* kWarp, 1) gated_kernel(GatedArgs<T> args) {
  __shared__ float gates[8 * kColumns][kTileOuts];
  const int first_out = static_cast<int>(blockIdx.x) * kTileOuts, track = static_cast<int>(blockIdx.y);
  const int first_row = static_cast<int>(blockIdx.z) * 8 * kColumns;
  const Job<T>&gate = args.gate, &up = args.up;
  const Rows<T> row{gate.x + track * gate.x_stride, first_row, args.rows, gate.in};
  auto* partial = static_cast<float*>(shared_memory());
  product_tile<kColumns, kWhole>(gate.weights.at[track], gate.in, gate.outs, first_out, row, partial,
                                 [&](int out, int i, float sum) { gates[i][out - first_out] = silu(sum); });
  product_tile<kColumns, kWhole>(up.weights.at[track], up.in, up.outs, first_out, row, partial,
                                 [&](int out, int i, float sum) {
                                   store(static_cast<T*>(gate.y) + place_of(gate, track, first_row + i, out),
                                         gates[i][out - first_out] * sum);
                                 });
}

template <typename T>
Job<T> make_job(const LinearJob& job, std::int64_t first_track, std::int64_t tracks, int tiles_before) {
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
  made.end_tile = tiles_before + ceil_div(made.outs, kTileOuts);
  return made;
}

// The instance for that many rows: launches kernel<kColumns, kWhole>(args).
template <class Launch>
void for_columns(int rows, bool whole, const Launch& launch_with) {
  if (!whole)
    launch_with.template run<4, false>();
  else if (rows <= 8)
    launch_with.template run<1, true>();
  else if (rows <= 16)
    launch_with.template run<2, true>();
  else
    launch_with.template run<8, true>();
}

struct Grid {
  int rows, tiles, warps;
  std::int64_t tracks;
  cudaStream_t stream;

  template <int kColumns>
  LaunchShape of(const char* kernel) const {
    const dim3 blocks(static_cast<unsigned>(tiles), static_cast<unsigned>(tracks),
                      static_cast<unsigned>(ceil_div(rows, 8 * kColumns)));
    return {kernel, blocks, dim3(static_cast<unsigned>(warps * kWarp)), stream,
            product_shared_bytes<kColumns>(warps)};
  }
};

template <typename T>
struct LaunchSkinny {
  const SkinnyArgs<T>& args;
  Grid grid;
  template <int kColumns, bool kWhole>
  void run() const {
    launch(grid.of<kColumns>("skinny_product"), skinny_kernel<T, kColumns, kWhole>, args);
  }
};

template <typename T>
struct LaunchGated {
  const GatedArgs<T>& args;
  Grid grid;
  template <int kColumns, bool kWhole>
  void run() const {
    launch(grid.of<kColumns>("gated_product"), gated_kernel<T, kColumns, kWhole>, args);
  }
};

template <typename T>
void run_products(std::span<const LinearJob> jobs, cudaStream_t stream) {
  for_track_groups(jobs[0].y.tracks, [&](std::int64_t first, std::int64_t count) {
    SkinnyArgs<T> args{};
    args.rows = static_cast<int>(jobs[0].y.rows);
    int tiles = 0, warps = 1;
    bool whole = true;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      args.jobs[i] = make_job<T>(jobs[i], first, count, tiles);
      tiles = args.jobs[i].end_tile;
      warps = std::max(warps, product_warps(args.jobs[i].in));
      whole = whole && args.jobs[i].in % 8 == 0;
    }
    for_columns(args.rows, whole, LaunchSkinny<T>{args, {args.rows, tiles, warps, count, stream}});
  });
}

template <typename T>
void run_gated(const LinearJob& gate, const LinearJob& up, cudaStream_t stream) {
  for_track_groups(gate.y.tracks, [&](std::int64_t first, std::int64_t count) {
    const GatedArgs<T> args{make_job<T>(gate, first, count, 0), make_job<T>(up, first, count, 0),
                            static_cast<int>(gate.y.rows)};
    const Grid grid{args.rows, args.gate.end_tile, product_warps(args.gate.in), count, stream};
    for_columns(args.rows, args.gate.in % 8 == 0, LaunchGated<T>{args, grid});
  });
}

}  // namespace

void skinny_products(std::span<const LinearJob> jobs, cudaStream_t stream) {
  with_element(jobs[0].x.dtype, [&]<typename T>(Element<T>) { run_products<T>(jobs, stream); });
}

void skinny_gated_product(const LinearJob& gate, const LinearJob& up, cudaStream_t stream) {
  with_element(gate.x.dtype, [&]<typename T>(Element<T>) { run_gated<T>(gate, up, stream); });
}

}  // namespace ptrt::cuda
