#include <algorithm>

#include "kernels/cuda/base/collective_memory.h"
#include "kernels/cuda/base/dtypes.cuh"
#include "kernels/cuda/base/gate.cuh"
#include "kernels/cuda/base/per_track.h"
#include "kernels/cuda/base/row_vector.cuh"
#include "kernels/cuda/ops/elementwise.h"
#include "kernels/cuda/ops/tree_sum.cuh"

namespace ptrt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;  // elements, or vectors of them, if there are many

// Grid: x over the elements (or vectors) of a track, y over tracks.
dim3 grid_of(std::int64_t elements, std::int64_t tracks, int per_thread = kPerThread) {
  const std::int64_t blocks = ceil_div<std::int64_t>(elements, kThreads * per_thread);
  return {static_cast<unsigned>(blocks), static_cast<unsigned>(tracks)};
}

struct Add {
  static __device__ __forceinline__ float run(float to, float from) { return to + from; }
};
struct Subtract {
  static __device__ __forceinline__ float run(float to, float from) { return to - from; }
};
struct Copy {
  static __device__ __forceinline__ float run(float, float from) { return from; }
};
template <class Gate>
struct Gated {
  static __device__ __forceinline__ float run(float gate, float up) { return Gate::of(gate) * up; }
};

// to = Op(to, from) on vectors of kElements; count: vectors per track.
template <class Op, int kElements, int kGroups, typename From, typename To>
__global__ void __launch_bounds__(kThreads)
    elementwise_kernel(const From* from, std::int64_t from_stride, To* to, std::int64_t to_stride,
                       std::int64_t count, bool triggers_early) {
  pdl_trigger_and_wait(triggers_early);
  from += blockIdx.y * from_stride;
  to += blockIdx.y * to_stride;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kThreads * kGroups + threadIdx.x;
  float a[kGroups][kElements] = {}, b[kGroups][kElements] = {};
#pragma unroll
  for (int n = 0; n < kGroups; ++n)
    if (const std::int64_t i = first + n * kThreads; i < count) {
      load(to + i * kElements, a[n]);
      load(from + i * kElements, b[n]);
    }
#pragma unroll
  for (int n = 0; n < kGroups; ++n)
    if (const std::int64_t i = first + n * kThreads; i < count) {
#pragma unroll
      for (int j = 0; j < kElements; ++j) a[n][j] = Op::run(a[n][j], b[n][j]);
      save(to + i * kElements, a[n]);
    }
}

// Whether every track's elements can be accessed as vectors of kVecSize.
bool is_vectorizable(const Tensor& x) {
  const auto bytes = static_cast<std::int64_t>(kVecSize * size_of(x.dtype));
  return x.rows * x.width % kVecSize == 0 && x.track_stride % kVecSize == 0 &&
         reinterpret_cast<std::intptr_t>(x.data) % bytes == 0;
}

template <class Op, typename From, typename To>
void run(const char* name, const Tensor& from, const Tensor& to, cudaStream_t stream) {
  const auto run_groups = [&]<int kElements, int kGroups>() {
    const std::int64_t count = to.rows * to.width / kElements;
    launch({name, grid_of(count, to.tracks, kGroups), dim3(kThreads), stream},
           elementwise_kernel<Op, kElements, kGroups, From, To>, static_cast<const From*>(from.data),
           from.tracks == 1 ? 0 : from.track_stride, static_cast<To*>(to.data), to.track_stride, count,
           may_trigger_early(to.data));
  };
  // Few rows: more blocks instead of more work per thread.
  const bool few = to.rows * to.width * to.tracks <
                   std::int64_t{4} * kVecSize * kThreads * kPerThread * device_traits().multiprocessors;
  if (!is_vectorizable(from) || !is_vectorizable(to))
    run_groups.template operator()<1, kPerThread>();
  else if (few)
    run_groups.template operator()<kVecSize, 1>();
  else
    run_groups.template operator()<kVecSize, kPerThread>();
}

// One block per row, grid y over tracks.
template <int kElements, typename T>
__global__ void __launch_bounds__(kThreads)
    add_bias_kernel(PerTrack<float> bias, T* y, std::int64_t y_stride, int width, bool triggers_early) {
  pdl_trigger_and_wait(triggers_early);
  const float* more = bias.at[blockIdx.y];
  y += blockIdx.y * y_stride + static_cast<std::int64_t>(blockIdx.x) * width;
  for (int i = thread_id() * kElements; i < width; i += kThreads * kElements) {
    float a[kElements], b[kElements];
    load(y + i, a);
    load(more + i, b);
#pragma unroll
    for (int j = 0; j < kElements; ++j) a[j] += b[j];
    save(y + i, a);
  }
}

template <typename T>
void run_add_bias(const TrackWeights& bias, const Tensor& y, cudaStream_t stream) {
  for_track_groups(y.tracks, [&](std::int64_t first, std::int64_t count) {
    const bool vectors = y.width % kVecSize == 0 && is_vectorizable(y);
    launch({"add_bias", dim3(static_cast<unsigned>(y.rows), static_cast<unsigned>(count)), dim3(kThreads),
            stream},
           vectors ? add_bias_kernel<kVecSize, T> : add_bias_kernel<1, T>,
           per_track<float>(bias, first, count), y.row_as<T>(first, 0), y.track_stride,
           static_cast<int>(y.width), may_trigger_early(y.data));
  });
}

// One block per row.
template <typename T>
__global__ void embed_kernel(const T* table, const std::int32_t* tokens, const Sampled* sampled, float scale,
                             float* x, int width) {
  pdl_trigger_and_wait();
  std::int32_t token = tokens[blockIdx.x];
  if (token < 0) token = sampled[token_of_sample(token)].token;  // token_of_sample() is its own inverse
  const T* from = table + static_cast<std::int64_t>(token) * width;
  float* to = x + static_cast<std::int64_t>(blockIdx.x) * width;
  for (int i = thread_id(); i < width; i += kThreads) to[i] = scale * to_float(from[i]);
}

template <typename T>
void run_embed(const Weight& table, const std::int32_t* tokens, const Sampled* sampled, float scale,
               const Tensor& x, cudaStream_t stream) {
  launch({"embed", dim3(static_cast<unsigned>(x.rows)), dim3(kThreads), stream}, embed_kernel<T>,
         static_cast<const T*>(table.data), tokens, sampled, scale, x.row(0, 0), static_cast<int>(x.width));
}

constexpr std::size_t kRowsPerGather = 512;
struct GatherArgs {
  const float* x;
  float* out;
  int width;
  std::int32_t rows[kRowsPerGather];
};

// One block per row.
__global__ void gather_rows_kernel(GatherArgs args) {
  pdl_trigger_and_wait();
  const float* from = args.x + static_cast<std::int64_t>(args.rows[blockIdx.x]) * args.width;
  float* to = args.out + static_cast<std::int64_t>(blockIdx.x) * args.width;
  for (int i = thread_id(); i < args.width; i += kThreads) to[i] = from[i];
}

struct JoinArgs {
  const float* parts;
  float* out;
  std::int64_t stride;
  int width, columns;
};

// A block has kThreads · kPerThread columns of one row.
__global__ void join_columns_kernel(JoinArgs args) {
  pdl_trigger_and_wait();
  const std::int64_t row = blockIdx.y;
  const int first = static_cast<int>(blockIdx.x) * kThreads * kPerThread + static_cast<int>(threadIdx.x);
  for (int n = 0; n < kPerThread; ++n) {
    const int column = first + n * kThreads;
    if (column >= args.columns) return;
    const int part = column / args.width, begin = part * args.width;
    const int width = min(args.width, args.columns - begin);
    args.out[row * args.columns + column] = args.parts[part * args.stride + row * width + column - begin];
  }
}

struct TreeArgs {
  TreeParts parts;
  std::int64_t count;
  float scale;
  const float* add_to;
  float* out;
  bool triggers_early;
};

__global__ void tree_sum_kernel(TreeArgs args) {
  pdl_trigger_and_wait(args.triggers_early);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kThreads * kPerThread + threadIdx.x;
  for (int n = 0; n < kPerThread; ++n) {
    const std::int64_t i = first + n * kThreads;
    if (i >= args.count) return;
    float total[1];
    tree_sum(args.parts, i, total);
    const float sum = __fmul_rn(args.scale, total[0]);  // never contracted to an FMA
    args.out[i] = args.add_to != nullptr ? __fadd_rn(args.add_to[i], sum) : sum;
  }
}

}  // namespace

void add(const Tensor& a, const Tensor& h, cudaStream_t stream) {
  if (a.dtype == DType::float32) return run<Add, float, float>("add", a, h, stream);
  dispatch_dtype(a.dtype, [&]<typename T>(TypeTag<T>) { run<Add, T, float>("add", a, h, stream); });
}

void subtract(const Tensor& x, const Tensor& y, cudaStream_t stream) {
  run<Subtract, float, float>("subtract", x, y, stream);
}

void copy(const Tensor& x, const Tensor& out, cudaStream_t stream) {
  if (out.dtype == DType::float32) return run<Copy, float, float>("copy", x, out, stream);
  dispatch_dtype(out.dtype, [&]<typename T>(TypeTag<T>) { run<Copy, float, T>("copy", x, out, stream); });
}

void glu(FfnActivation activation, const Tensor& gate, const Tensor& up, cudaStream_t stream) {
  dispatch_dtype(gate.dtype, [&]<typename T>(TypeTag<T>) {
    dispatch_gate(activation, [&]<class Gate>() { run<Gated<Gate>, T, T>("glu", up, gate, stream); });
  });
}

void add_bias(const TrackWeights& bias, const Tensor& y, cudaStream_t stream) {
  if (y.dtype == DType::float32) return run_add_bias<float>(bias, y, stream);
  dispatch_dtype(y.dtype, [&]<typename T>(TypeTag<T>) { run_add_bias<T>(bias, y, stream); });
}

void join_columns(const float* parts, std::int64_t stride, std::int64_t width, const Tensor& out,
                  cudaStream_t stream) {
  const JoinArgs args{parts, out.row(0, 0), stride, static_cast<int>(width), static_cast<int>(out.width)};
  const auto blocks = ceil_div<std::int64_t>(out.width, kThreads * kPerThread);
  launch({"join_columns", dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(out.rows)),
          dim3(kThreads), stream},
         join_columns_kernel, args);
}

void gather_rows(const Tensor& x, std::span<const std::int32_t> rows, const Tensor& out,
                 cudaStream_t stream) {
  GatherArgs args{};
  args.x = x.row(0, 0);
  args.width = static_cast<int>(x.width);
  for (std::size_t first = 0; first < rows.size(); first += kRowsPerGather) {
    const auto some = rows.subspan(first, std::min(kRowsPerGather, rows.size() - first));
    std::copy(some.begin(), some.end(), args.rows);
    args.out = out.row(0, static_cast<std::int64_t>(first));
    launch({"gather_rows", dim3(static_cast<unsigned>(some.size())), dim3(kThreads), stream},
           gather_rows_kernel, args);
  }
}

void embed(const Weight& table, const std::int32_t* tokens, const Sampled* sampled, float scale,
           const Tensor& x, cudaStream_t stream) {
  if (table.dtype == DType::float32) return run_embed<float>(table, tokens, sampled, scale, x, stream);
  dispatch_dtype(table.dtype,
                 [&]<typename T>(TypeTag<T>) { run_embed<T>(table, tokens, sampled, scale, x, stream); });
}

void tree_sum(std::span<const float* const> parts, std::int64_t count, float scale, const float* add_to,
              float* out, cudaStream_t stream) {
  TreeArgs args{};
  args.parts = tree_parts(parts);
  args.count = count;
  args.scale = scale;
  args.add_to = add_to;
  args.out = out;
  args.triggers_early = may_trigger_early(out);
  launch({"tree_sum", grid_of(count, 1), dim3(kThreads), stream}, tree_sum_kernel, args);
}

}  // namespace ptrt::cuda
