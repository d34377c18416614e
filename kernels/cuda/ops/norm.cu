#include "kernels/cuda/base/collective_memory.h"
#include "kernels/cuda/base/per_track.h"
#include "kernels/cuda/ops/norm.h"
#include "kernels/cuda/ops/row_norm.cuh"

namespace ptrt::cuda {
namespace {

// Strides between tracks in elements; rows lie `width` apart.
template <typename Added, typename In, typename Out>
struct NormArgs {
  const Added* added;  // null: rms_norm() without addition
  std::int64_t added_stride;
  In* x;  // x += added is stored
  std::int64_t x_stride;
  Out* out;
  std::int64_t out_stride;
  PerTrack<float> weights;
  int width;
  float eps;
  bool triggers_early;
};

// One block per row. A thread keeps its first elements in registers; these are all it has of rows
// up to kMaxRowThreads · kElements. In longer rows it reads back the rest, which only it has
// written.
template <int kElements, bool kPreScale, typename Added, typename In, typename Out>
__global__ void __launch_bounds__(kMaxRowThreads) rms_norm_kernel(NormArgs<Added, In, Out> args) {
  __shared__ float scratch[kMaxRowThreads / kWarpSize];
  if (args.triggers_early) trigger_dependent_launch();
  const int track = static_cast<int>(blockIdx.y);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * args.width;
  In* x = args.x + track * args.x_stride + row;
  const Added* added = args.added == nullptr ? nullptr : args.added + track * args.added_stride + row;
  const float* weights = args.weights.at[track];
  const int first = thread_id() * kElements;
  const int step = block_size() * kElements;
  float weight[kElements] = {};
  if (first < args.width) load(weights + first, weight);
  grid_dependency_wait();

  const auto sum_at = [&](int i, float(&value)[kElements]) {
    load(x + i, value);
    if (added == nullptr) return;
    float more[kElements];
    load(added + i, more);
#pragma unroll
    for (int j = 0; j < kElements; ++j) value[j] += more[j];
    save(x + i, value);
  };
  float squares = 0, kept[kElements] = {};
  for (int i = first; i < args.width; i += step) {
    float value[kElements];
    sum_at(i, value);
    if (kPreScale && i > first) load(weights + i, weight);
    squares = add_squares<kPreScale>(squares, weight, value);
#pragma unroll
    for (int j = 0; j < kElements; ++j)
      if (i == first) kept[j] = value[j];
  }
  const float scale = inverse_rms(squares, args.width, args.eps, scratch);

  Out* out = args.out + track * args.out_stride + row;
  if (kPreScale && first + step < args.width) load(weights + first, weight);
  for (int i = first; i < args.width; i += step) {
    if (i > first) {
      load(x + i, kept);
      load(weights + i, weight);
    }
    apply_norm<kPreScale>(scale, weight, kept);
    save(out + i, kept);
  }
}

template <typename Added, typename In, typename Out>
void run(const char* name, const Tensor* added, const TrackWeights& weights, NormRule rule, const Tensor& x,
         const Tensor& out, cudaStream_t stream) {
  for_track_groups(out.tracks, [&](std::int64_t first, std::int64_t count) {
    NormArgs<Added, In, Out> args{};
    if (added != nullptr) {
      args.added_stride = added->tracks == 1 ? 0 : added->track_stride;
      args.added = static_cast<const Added*>(added->data) + first * args.added_stride;
    }
    args.x_stride = x.tracks == 1 ? 0 : x.track_stride;
    args.x = static_cast<In*>(x.data) + first * args.x_stride;
    args.out_stride = out.track_stride;
    args.out = static_cast<Out*>(out.data) + first * args.out_stride;
    args.weights = per_track<float>(weights, first, count);
    args.width = static_cast<int>(x.width);
    args.eps = rule.eps;
    args.triggers_early = may_trigger_early(out.data);
    const LaunchShape shape{name, dim3(static_cast<unsigned>(out.rows), static_cast<unsigned>(count)),
                            row_threads(args.width), stream};
    dispatch_row(args.width, rule.pre_scale, [&]<int kElements, bool kPreScale>() {
      launch(shape, rms_norm_kernel<kElements, kPreScale, Added, In, Out>, args);
    });
  });
}

}  // namespace

void rms_norm(const TrackWeights& weights, NormRule rule, const Tensor& x, const Tensor& out,
              cudaStream_t stream) {
  constexpr const char* kName = "rms_norm";
  if (out.dtype == DType::float32)
    return run<float, float, float>(kName, nullptr, weights, rule, x, out, stream);
  dispatch_dtype(out.dtype, [&]<typename T>(TypeTag<T>) {
    (x.dtype == DType::float32 ? run<float, float, T> : run<float, T, T>)(kName, nullptr, weights, rule, x,
                                                                          out, stream);
  });
}

void add_rms_norm(const Tensor& a, const Tensor& h, const TrackWeights& weights, NormRule rule,
                  const Tensor& out, cudaStream_t stream) {
  constexpr const char* kName = "add_rms_norm";
  const bool a_is_fp32 = a.dtype == DType::float32;
  if (a_is_fp32 && out.dtype == DType::float32)
    return run<float, float, float>(kName, &a, weights, rule, h, out, stream);
  dispatch_dtype(a_is_fp32 ? out.dtype : a.dtype, [&]<typename T>(TypeTag<T>) {
    if (a_is_fp32)
      run<float, float, T>(kName, &a, weights, rule, h, out, stream);
    else
      (out.dtype == DType::float32 ? run<T, float, float> : run<T, float, T>)(kName, &a, weights, rule, h,
                                                                              out, stream);
  });
}

}  // namespace ptrt::cuda
