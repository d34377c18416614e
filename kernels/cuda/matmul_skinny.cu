#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_tile.cuh"
#include "kernels/cuda/per_track.h"

namespace ptrt::cuda {
namespace {

struct Job {
  PerTrack<bf16> weights;
  const bf16* x;
  void* y;
  std::int64_t x_stride, y_stride;  // between tracks
  int in, outs, end_tile;           // end_tile: of this job, counted over the jobs before it too
  bool exact;                       // y is float32
};

struct SkinnyArgs {
  Job jobs[kSkinnyJobs];
  int rows;
};

// Grid: x over tiles of 16 outputs of all jobs, y over tracks, z over groups of 8 · kColumns rows.
template <int kColumns, bool kWhole>
__global__ void __launch_bounds__(kMaxProductWarps* kWarp, kColumns == 1 ? 3 : 1)
    skinny_kernel(SkinnyArgs args) {
  const int tile = static_cast<int>(blockIdx.x), track = static_cast<int>(blockIdx.y);
  const int first_row = static_cast<int>(blockIdx.z) * 8 * kColumns;
  int index = 0, first_tile = 0;
  while (tile >= args.jobs[index].end_tile) first_tile = args.jobs[index++].end_tile;
  const Job& job = args.jobs[index];
  const bf16* x = job.x + track * job.x_stride;
  const auto row = [&](int i) -> const bf16* {
    const int r = first_row + i;
    return r < args.rows ? x + static_cast<std::int64_t>(r) * job.in : nullptr;
  };
  const auto put = [&](int out, int i, float sum) {
    const std::int64_t at = track * job.y_stride + static_cast<std::int64_t>(first_row + i) * job.outs + out;
    if (job.exact)
      static_cast<float*>(job.y)[at] = sum;
    else
      store(static_cast<bf16*>(job.y) + at, sum);
  };
  product_tile<kColumns, kWhole>(job.weights.at[track], job.in, job.outs, (tile - first_tile) * kTileOuts,
                                 row, static_cast<float*>(shared_memory()), put);
}

Job make_job(const LinearJob& job, std::int64_t first_track, std::int64_t tracks, int tiles_before) {
  Job made{};
  made.weights = per_track<bf16>(*job.weights, first_track, tracks);
  made.x_stride = job.x.tracks == 1 ? 0 : job.x.track_stride;
  made.y_stride = job.y.track_stride;
  made.x = static_cast<const bf16*>(job.x.data) + first_track * made.x_stride;
  made.exact = job.y.dtype == DType::float32;
  made.y = static_cast<std::byte*>(job.y.data) +
           first_track * made.y_stride * static_cast<std::int64_t>(size_of(job.y.dtype));
  made.in = static_cast<int>(job.x.width);
  made.outs = static_cast<int>(job.y.width);
  made.end_tile = tiles_before + ceil_div(made.outs, kTileOuts);
  return made;
}

template <int kColumns, bool kWhole>
void launch_skinny(const SkinnyArgs& args, unsigned tiles, unsigned tracks, int warps, cudaStream_t stream) {
  const dim3 grid(tiles, tracks, static_cast<unsigned>(ceil_div(args.rows, 8 * kColumns)));
  launch({"skinny_product", grid, dim3(static_cast<unsigned>(warps * kWarp)), stream,
          product_shared_bytes<kColumns>(warps)},
         skinny_kernel<kColumns, kWhole>, args);
}

}  // namespace

void skinny_products(std::span<const LinearJob> jobs, cudaStream_t stream) {
  for_track_groups(jobs[0].y.tracks, [&](std::int64_t first, std::int64_t count) {
    SkinnyArgs args{};
    args.rows = static_cast<int>(jobs[0].y.rows);
    int tiles = 0, warps = 1;
    bool whole = true;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      args.jobs[i] = make_job(jobs[i], first, count, tiles);
      tiles = args.jobs[i].end_tile;
      warps = std::max(warps, product_warps(args.jobs[i].in));
      whole = whole && args.jobs[i].in % 8 == 0;
    }
    const auto tile_count = static_cast<unsigned>(tiles), track_count = static_cast<unsigned>(count);
    if (!whole)
      launch_skinny<4, false>(args, tile_count, track_count, warps, stream);
    else if (args.rows <= 8)
      launch_skinny<1, true>(args, tile_count, track_count, warps, stream);
    else if (args.rows <= 16)
      launch_skinny<2, true>(args, tile_count, track_count, warps, stream);
    else
      launch_skinny<8, true>(args, tile_count, track_count, warps, stream);
  });
}

}  // namespace ptrt::cuda
