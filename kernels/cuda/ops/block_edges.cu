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

template <int kElements>
__device__ __forceinline__ void load_and_apply(float scale, const float* weights, float (&value)[kElements]) {
  float weight[kElements];
  load(weights, weight);
  apply_norm(scale, weight, value);
}

// Strides between tracks in elements; rows lie `width` apart.
template <typename Added>
struct EndArgs {
  const Added* a;
  float *h, *y;
  const float* minus;  // null: nothing is subtracted
  std::int64_t a_stride, h_stride, y_stride;
  PerTrack<float> post_norm, combine_norm;
  bool post, combine;
  int width;
  float eps;
};

// Grid: x over rows, y over tracks.
template <int kElements, typename Added>
__global__ void __launch_bounds__(kMaxRowThreads) end_block_kernel(EndArgs<Added> args) {
  pdl_trigger_and_wait();
  __shared__ float scratch[kMaxRowThreads / kWarpSize];
  const int track = static_cast<int>(blockIdx.y);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * args.width;
  const Added* a = args.a + track * args.a_stride + row;
  float* h = args.h + track * args.h_stride + row;
  float* y = args.y + track * args.y_stride + row;
  const int first = thread_id() * kElements;
  const int step = block_size() * kElements;

  float squares = 0;
  for (int i = first; i < args.width; i += step) {
    float value[kElements], more[kElements];
    load(h + i, value);
    load(a + i, more);
#pragma unroll
    for (int j = 0; j < kElements; ++j) value[j] += more[j];
    save(h + i, value);
    squares = add_squares(squares, value);
  }
  if (args.post) {
    const float scale = norm_scale(squares, args.width, args.eps, scratch);
    squares = 0;
    for (int i = first; i < args.width; i += step) {
      float value[kElements];
      load(h + i, value);
      load_and_apply(scale, args.post_norm.at[track] + i, value);
      save(h + i, value);
      squares = add_squares(squares, value);
    }
  }
  if (!args.combine && args.minus == nullptr && y == h) return;
  const float scale = args.combine ? norm_scale(squares, args.width, args.eps, scratch) : 1.0f;
  for (int i = first; i < args.width; i += step) {
    float value[kElements];
    load(h + i, value);
    if (args.combine) load_and_apply(scale, args.combine_norm.at[track] + i, value);
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
  PerTrack<float> dispatch_norm, pre_norm;
  bool dispatch, pre;
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
template <int kElements, typename Normed>
__global__ void __launch_bounds__(kMaxRowThreads) begin_block_kernel(BeginArgs<Normed> args) {
  pdl_trigger_and_wait();
  __shared__ float scratch[kMaxRowThreads / kWarpSize];
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * args.width;
  const int first = thread_id() * kElements;
  const int step = block_size() * kElements;
  bool sum = args.parts.count > 0;
  for (int track = static_cast<int>(blockIdx.y); track < args.tracks; track += static_cast<int>(gridDim.y)) {
    float* h = args.h + track * args.h_stride + row;
    float squares = 0;
#pragma unroll 1
    for (int i = first; i < args.width; i += step) {
      float value[kElements];
      load_x(args, sum, row + i, value);
      if (sum && track == 0) save(args.x + row + i, value);
      save(h + i, value);
      squares = add_squares(squares, value);
    }
    sum = false;
    if (args.dispatch) {
      const float scale = norm_scale(squares, args.width, args.eps, scratch);
      squares = 0;
#pragma unroll 1
      for (int i = first; i < args.width; i += step) {
        float value[kElements];
        load(h + i, value);
        load_and_apply(scale, args.dispatch_norm.at[track] + i, value);
        save(h + i, value);
        squares = add_squares(squares, value);
      }
    }
    if (!args.pre) continue;
    const float scale = norm_scale(squares, args.width, args.eps, scratch);
    Normed* normed = args.normed + track * args.normed_stride + row;
#pragma unroll 1
    for (int i = first; i < args.width; i += step) {
      float value[kElements];
      load(h + i, value);
      load_and_apply(scale, args.pre_norm.at[track] + i, value);
      save(normed + i, value);
    }
  }
}

PerTrack<float> weights_of(const TrackWeights* norm, const Tensor& h) {
  return norm == nullptr ? PerTrack<float>{} : per_track<float>(*norm, 0, h.tracks);
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
  args.post_norm = weights_of(end.post_norm, end.h);
  args.combine_norm = weights_of(end.combine_norm, end.h);
  args.post = end.post_norm != nullptr;
  args.combine = end.combine_norm != nullptr;
  args.width = static_cast<int>(end.h.width);
  args.eps = end.eps;
  const dim3 grid(static_cast<unsigned>(end.h.rows), static_cast<unsigned>(end.h.tracks));
  const LaunchShape shape{"end_block", grid, row_threads(args.width), stream};
  if (is_vectorizable(args.width))
    launch(shape, end_block_kernel<kVecSize, Added>, args);
  else
    launch(shape, end_block_kernel<1, Added>, args);
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
  args.dispatch_norm = weights_of(begin.dispatch_norm, begin.h);
  args.pre_norm = weights_of(begin.pre_norm, begin.h);
  args.dispatch = begin.dispatch_norm != nullptr;
  args.pre = begin.pre_norm != nullptr;
  args.tracks = static_cast<int>(begin.h.tracks);
  args.width = static_cast<int>(begin.h.width);
  args.eps = begin.eps;
  const bool in_place = !begin.parts.empty() && begin.add_to_x;
  const dim3 grid(static_cast<unsigned>(begin.h.rows), in_place ? 1 : static_cast<unsigned>(args.tracks));
  const LaunchShape shape{"begin_block", grid, row_threads(args.width), stream};
  if (is_vectorizable(args.width))
    launch(shape, begin_block_kernel<kVecSize, Normed>, args);
  else
    launch(shape, begin_block_kernel<1, Normed>, args);
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
