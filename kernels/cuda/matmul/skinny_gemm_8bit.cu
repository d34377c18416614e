#include <algorithm>

#include "kernels/cuda/matmul/skinny_gemm_8bit.h"
#include "kernels/cuda/matmul/skinny_jobs.cuh"

namespace ptrt::cuda {
namespace {

// Calls work.operator()<Args>() with the types of the jobs' activations and weights.
template <class Work>
void dispatch_args(const LinearJob& job, const Work& work) {
  const bool is_int8 = (*job.weights)[0].dtype == DType::int8;
  dispatch_dtype(job.x.dtype, [&]<typename T>(TypeTag<T>) {
    if (is_int8)
      work.template operator()<SkinnyArgs<T, ScaledJob<T, Int8>>>();
    else
      work.template operator()<SkinnyArgs<T, ScaledJob<T, Float8>>>();
  });
}

// Calls pass(first_row, rows) for as many passes as the rows take.
template <class Pass>
void for_passes(std::int64_t rows, const Pass& pass) {
  for (std::int64_t first = 0; first < rows; first += kSkinnyRows)
    pass(first, std::min(kSkinnyRows, rows - first));
}

template <class Args>
void run_pass(std::span<const LinearJob> jobs, std::int64_t first_row, std::int64_t rows,
              cudaStream_t stream) {
  const bool aligned = std::ranges::all_of(jobs, [](const LinearJob& job) { return job.x.width % 8 == 0; });
  for_track_groups(jobs[0].y.tracks, [&](std::int64_t first, std::int64_t count) {
    const Args args = make_args<Args>(jobs, first, count, first_row, rows);
    const int units = args.tiles * static_cast<int>(count);
    (aligned ? launch_multistage<GroupedKernels<Args, true>, Args>
             : launch_multistage<GroupedKernels<Args, false>, Args>)(args, units, stream);
  });
}

}  // namespace

void skinny_gemm_8bit(std::span<const LinearJob> jobs, cudaStream_t stream) {
  dispatch_args(jobs[0], [&]<class Args>() {
    for_passes(jobs[0].y.rows, [&](std::int64_t first_row, std::int64_t rows) {
      run_pass<Args>(jobs, first_row, rows, stream);
    });
  });
}

void skinny_gated_gemm_8bit(FfnActivation activation, const LinearJob& gate, const LinearJob& up,
                            cudaStream_t stream) {
  const LinearJob jobs[] = {gate, up};
  dispatch_args(gate, [&]<class Args>() {
    dispatch_gate(activation, [&]<class Gate>() {
      for_passes(gate.y.rows, [&](std::int64_t first_row, std::int64_t rows) {
        run_gated<Args, Gate>(jobs, first_row, rows, stream);
      });
    });
  });
}

}  // namespace ptrt::cuda
