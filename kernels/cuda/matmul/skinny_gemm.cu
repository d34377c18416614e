#include <algorithm>

#include "kernels/cuda/matmul/skinny_gemm.h"
#include "kernels/cuda/matmul/skinny_jobs.cuh"

namespace ptrt::cuda {
namespace {

template <typename T>
using BiasedArgs = SkinnyArgs<T, BiasedJob<T>>;

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
  const int first_out = (tile - first_tile) * kTileOuts;
  const TileRows<T, T, kAligned> weights(job.weights.at[track], nullptr, job.in, job.outs, first_out);
  gemm_tile<kTilesN>(weights, job.in, job.outs, first_out, row, static_cast<float*>(shared_memory()),
                     epilogue);
}

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
    const Args args = make_args<Args>(jobs, first, count, 0, jobs[0].y.rows);
    if (!aligned)
      launch_tiles<4, false>(args, count, stream);
    else if (args.rows <= kSkinnyRows)
      launch_multistage<GroupedKernels<Args, true>>(args, args.tiles * static_cast<int>(count), stream);
    else
      launch_tiles<8, true>(args, count, stream);
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
    dispatch_gate(activation,
                  [&]<class Gate>() { run_gated<SkinnyArgs<T>, Gate>(jobs, 0, gate.y.rows, stream); });
  });
}

}  // namespace ptrt::cuda
