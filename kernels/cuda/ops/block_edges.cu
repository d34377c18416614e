#include "kernels/cuda/base/collective_memory.h"
#include "kernels/cuda/base/per_track.h"
#include "kernels/cuda/ops/block_edges.h"
#include "kernels/cuda/ops/row_norm.cuh"
#include "kernels/cuda/ops/tree_sum.cuh"

// A block processes a row, with one pass per norm. Results have the same bits as those of norm.cu.
// A thread reads back only what it has written itself.
namespace ptrt::cuda {
namespace {

// As inverse_rms(); scratch may be reused at once.
__device__ __forceinline__ float norm_scale(float squares, int width, float eps, float* scratch) {
  const float scale = inverse_rms(squares, width, eps, scratch);
  __syncthreads();
  return scale;
}

// A norm of every track, where it exists. kAnyPreScale: one of the launch's norms multiplies by its
// weights first.
struct BlockNorm {
  PerTrack<float> weights;
  bool exists = false, pre_scale = false;

  // squares + the squares of elements [i, i + kElements) that this norm's statistics take.
  template <bool kAnyPreScale, int kElements>
  __device__ __forceinline__ float add_squares(float squares, int track, int i,
                                               const float (&value)[kElements]) const {
    if (!kAnyPreScale || !pre_scale) return cuda::add_squares(squares, value);
    float weight[kElements];
    load(weights.at[track] + i, weight);
    return cuda::add_squares<true>(squares, weight, value);
  }
  template <bool kAnyPreScale, int kElements>
  __device__ __forceinline__ void apply(float scale, int track, int i, float (&value)[kElements]) const {
    float weight[kElements];
    load(weights.at[track] + i, weight);
    if (kAnyPreScale && pre_scale)
      apply_norm<true>(scale, weight, value);
    else
      apply_norm<false>(scale, weight, value);
  }
};

// Strides between tracks in elements; rows lie `width` apart.
template <typename Added>
struct EndArgs {
  const Added* a;
  float *h, *y;
  const float* minus;  // null: nothing is subtracted
  std::int64_t a_stride, h_stride, y_stride;
  BlockNorm post, combine;
  int width;
  float eps;
  bool triggers_early;
};

// Grid: x over rows, y over tracks.
template <int kElements, bool kPreScale, typename Added>
__global__ void __launch_bounds__(kMaxRowThreads) end_block_kernel(EndArgs<Added> args) {
  pdl_trigger_and_wait(args.triggers_early);
  __shared__ float scratch[kMaxRowThreads / kWarpSize];
  const int track = static_cast<int>(blockIdx.y);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * args.width;
  const Added* a = args.a + track * args.a_stride + row;
  float* h = args.h + track * args.h_stride + row;
  float* y = args.y + track * args.y_stride + row;
  const int first = thread_id() * kElements;
  const int step = block_size() * kElements;
  const BlockNorm& first_norm = args.post.exists ? args.post : args.combine;

  float squares = 0;
  for (int i = first; i < args.width; i += step) {
    float value[kElements], more[kElements];
    load(h + i, value);
    load(a + i, more);
#pragma unroll
    for (int j = 0; j < kElements; ++j) value[j] += more[j];
    save(h + i, value);
    squares = first_norm.template add_squares<kPreScale>(squares, track, i, value);
  }
  if (args.post.exists) {
    const float scale = norm_scale(squares, args.width, args.eps, scratch);
    squares = 0;
    for (int i = first; i < args.width; i += step) {
      float value[kElements];
      load(h + i, value);
      args.post.template apply<kPreScale>(scale, track, i, value);
      save(h + i, value);
      squares = args.combine.template add_squares<kPreScale>(squares, track, i, value);
    }
  }
  if (!args.combine.exists && args.minus == nullptr && y == h) return;
  const float scale = args.combine.exists ? norm_scale(squares, args.width, args.eps, scratch) : 1.0f;
  for (int i = first; i < args.width; i += step) {
    float value[kElements];
    load(h + i, value);
    if (args.combine.exists) args.combine.template apply<kPreScale>(scale, track, i, value);
    if (args.minus != nullptr) {
      float less[kElements];
      load(args.minus + row + i, less);
#pragma unroll
      for (int j = 0; j < kElements; ++j)
        value[j] = __fadd_rn(value[j], -less[j]);  // never contracted to an FMA
    }
    save(y + i, value);
  }
}

template <typename Normed>
struct BeginArgs {
  TreeParts parts;
  float scale;
  bool add_to_x;
  float *x, *h;
  Normed* normed;
  std::int64_t h_stride, normed_stride;
  BlockNorm dispatch, pre;
  int tracks, width;
  float eps;
};

// Elements [i, i + kElements) of x: as stored, or the sum of the parts.
template <int kElements, typename Normed>
__device__ __forceinline__ void load_x(const BeginArgs<Normed>& args, bool sum, std::int64_t i,
                                       float (&value)[kElements]) {
  if (!sum) return load(args.x + i, value);
  tree_sum(args.parts, i, value);
  float before[kElements] = {};
  if (args.add_to_x) load(args.x + i, before);
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    value[j] = __fmul_rn(args.scale, value[j]);  // never contracted to an FMA
    if (args.add_to_x) value[j] = __fadd_rn(before[j], value[j]);
  }
}

// Grid: x over rows; y over tracks, or 1 if x is read and written, since one block must not read
// what another has written. The blocks of every track sum the parts; only those of the first store
// x. Unrolled loops would spill.
template <int kElements, bool kPreScale, typename Normed>
__global__ void __launch_bounds__(kMaxRowThreads) begin_block_kernel(BeginArgs<Normed> args) {
  pdl_trigger_and_wait();
  __shared__ float scratch[kMaxRowThreads / kWarpSize];
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * args.width;
  const int first = thread_id() * kElements;
  const int step = block_size() * kElements;
  bool sum = args.parts.count > 0;
  for (int track = static_cast<int>(blockIdx.y); track < args.tracks; track += static_cast<int>(gridDim.y)) {
    float* h = args.h + track * args.h_stride + row;
    const BlockNorm& first_norm = args.dispatch.exists ? args.dispatch : args.pre;
    float squares = 0;
#pragma unroll 1
    for (int i = first; i < args.width; i += step) {
      float value[kElements];
      load_x(args, sum, row + i, value);
      if (sum && track == 0) save(args.x + row + i, value);
      save(h + i, value);
      squares = first_norm.template add_squares<kPreScale>(squares, track, i, value);
    }
    sum = false;
    if (args.dispatch.exists) {
      const float scale = norm_scale(squares, args.width, args.eps, scratch);
      squares = 0;
#pragma unroll 1
      for (int i = first; i < args.width; i += step) {
        float value[kElements];
        load(h + i, value);
        args.dispatch.template apply<kPreScale>(scale, track, i, value);
        save(h + i, value);
        squares = args.pre.template add_squares<kPreScale>(squares, track, i, value);
      }
    }
    if (!args.pre.exists) continue;
    const float scale = norm_scale(squares, args.width, args.eps, scratch);
    Normed* normed = args.normed + track * args.normed_stride + row;
#pragma unroll 1
    for (int i = first; i < args.width; i += step) {
      float value[kElements];
      load(h + i, value);
      args.pre.template apply<kPreScale>(scale, track, i, value);
      save(normed + i, value);
    }
  }
}

BlockNorm block_norm(const TrackWeights* weights, bool pre_scale, const Tensor& h) {
  if (weights == nullptr) return {};
  return {per_track<float>(*weights, 0, h.tracks), true, pre_scale};
}

template <typename Added>
void run_end(const BlockEnd& end, cudaStream_t stream) {
  EndArgs<Added> args{};
  args.a = static_cast<const Added*>(end.a.data);
  args.h = end.h.row(0, 0);
  args.y = end.y.row(0, 0);
  args.minus = static_cast<const float*>(end.minus.data);
  args.a_stride = end.a.track_stride;
  args.h_stride = end.h.track_stride;
  args.y_stride = end.y.track_stride;
  args.post = block_norm(end.post_norm, end.pre_scale_post, end.h);
  args.combine = block_norm(end.combine_norm, end.pre_scale_combine, end.h);
  args.width = static_cast<int>(end.h.width);
  args.eps = end.eps;
  args.triggers_early = may_trigger_early(end.y.data);
  const dim3 grid(static_cast<unsigned>(end.h.rows), static_cast<unsigned>(end.h.tracks));
  const LaunchShape shape{"end_block", grid, row_threads(args.width), stream};
  dispatch_row(args.width, args.post.pre_scale || args.combine.pre_scale,
               [&]<int kElements, bool kPreScale>() {
                 launch(shape, end_block_kernel<kElements, kPreScale, Added>, args);
               });
}

template <typename Normed>
void run_begin(const BlockBegin& begin, cudaStream_t stream) {
  BeginArgs<Normed> args{};
  args.parts = tree_parts(begin.parts);
  args.scale = begin.scale;
  args.add_to_x = begin.add_to_x;
  args.x = begin.x.row(0, 0);
  args.h = begin.h.row(0, 0);
  args.normed = static_cast<Normed*>(begin.normed.data);
  args.h_stride = begin.h.track_stride;
  args.normed_stride = begin.normed.track_stride;
  args.dispatch = block_norm(begin.dispatch_norm, begin.pre_scale_dispatch, begin.h);
  args.pre = block_norm(begin.pre_norm, begin.pre_scale_pre, begin.h);
  args.tracks = static_cast<int>(begin.h.tracks);
  args.width = static_cast<int>(begin.h.width);
  args.eps = begin.eps;
  const bool in_place = !begin.parts.empty() && begin.add_to_x;
  const dim3 grid(static_cast<unsigned>(begin.h.rows), in_place ? 1 : static_cast<unsigned>(args.tracks));
  const LaunchShape shape{"begin_block", grid, row_threads(args.width), stream};
  dispatch_row(args.width, args.dispatch.pre_scale || args.pre.pre_scale,
               [&]<int kElements, bool kPreScale>() {
                 launch(shape, begin_block_kernel<kElements, kPreScale, Normed>, args);
               });
}

}  // namespace

bool fits_one_launch(const BlockEnd& end) {
  return end.h.tracks <= kTracksPerLaunch;
}
bool fits_one_launch(const BlockBegin& begin) {
  return begin.h.tracks <= kTracksPerLaunch && begin.parts.size() <= std::size_t{kMaxTreeParts};
}

void end_block(const BlockEnd& end, cudaStream_t stream) {
  if (end.a.dtype == DType::float32) return run_end<float>(end, stream);
  dispatch_dtype(end.a.dtype, [&]<typename T>(TypeTag<T>) { run_end<T>(end, stream); });
}

void begin_block(const BlockBegin& begin, cudaStream_t stream) {
  dispatch_dtype(begin.normed.dtype, [&]<typename T>(TypeTag<T>) { run_begin<T>(begin, stream); });
}

}  // namespace ptrt::cuda
