#include <algorithm>

#include "kernels/cuda/base/per_track.h"
#include "kernels/cuda/matmul/weight_slice.cuh"
#include "kernels/cuda/matmul/widen.h"

namespace ptrt::cuda {
namespace {

constexpr int kWidenThreads = 256;

template <typename T, typename W>
struct WidenArgs {
  PerTrack<W> codes;
  PerTrack<void> scales;
  T* to;
  std::int64_t first_row;
  int rows, in;
};

template <typename W>
__device__ __forceinline__ float scale_at(const void* scales, std::int64_t in, std::int64_t row,
                                          std::int64_t input) {
  if constexpr (std::is_same_v<W, Float8>)
    return static_cast<const float*>(scales)[row];
  else
    return to_float(static_cast<const f16*>(scales)[scale_index(in, row, input / kInt8Group)]);
}

template <typename T>
__device__ __forceinline__ T element_of(std::uint32_t bits) {
  if constexpr (std::is_same_v<T, f16>)
    return __ushort_as_half(static_cast<unsigned short>(bits));
  else
    return __ushort_as_bfloat16(static_cast<unsigned short>(bits));
}

// Grid: x over rows, y over tracks. A thread has eight elements at a time.
template <typename T, typename W>
__global__ void __launch_bounds__(kWidenThreads) widen_kernel(WidenArgs<T, W> args) {
  pdl_trigger_and_wait();
  const int track = static_cast<int>(blockIdx.y), to_row = static_cast<int>(blockIdx.x);
  const std::int64_t row = args.first_row + to_row;
  const W* codes = args.codes.at[track] + row * row_stride<W>(args.in);
  T* to = args.to + (static_cast<std::int64_t>(track) * args.rows + to_row) * args.in;
  for (int i = 8 * thread_id(); i < args.in; i += 8 * block_size()) {
    Vec8 wide = widen<T, W>(*reinterpret_cast<const uint2*>(codes + i));
    const float scale = scale_at<W>(args.scales.at[track], args.in, row, i);
#pragma unroll
    for (std::uint32_t& pair : wide.pair)
      pair = pack<T>(to_float(element_of<T>(pair)) * scale, to_float(element_of<T>(pair >> 16)) * scale);
    *reinterpret_cast<Vec8*>(to + i) = wide;
  }
}

template <typename T, typename W>
void run(const WeightRows& from, void* to, cudaStream_t stream) {
  const TrackWeights& weights = *from.weights;
  WidenArgs<T, W> args{};
  args.codes = per_track<W>(weights, from.first_track, from.tracks);
  for (std::int64_t t = 0; t < from.tracks; ++t)
    args.scales.set(t, weights[static_cast<std::size_t>(from.first_track + t)].scales);
  args.to = static_cast<T*>(to);
  args.first_row = from.first_row;
  args.rows = static_cast<int>(from.rows);
  args.in = static_cast<int>(weights[0].in);
  // Whole warps, no more than the row has pieces for.
  const int threads = std::min(kWidenThreads, ceil_div(args.in / 8, kWarpSize) * kWarpSize);
  const dim3 grid(static_cast<unsigned>(from.rows), static_cast<unsigned>(from.tracks));
  launch({"widen_rows", grid, dim3(static_cast<unsigned>(threads)), stream}, widen_kernel<T, W>, args);
}

}  // namespace

void widen_rows(const WeightRows& from, DType type, void* to, cudaStream_t stream) {
  const bool is_int8 = (*from.weights)[0].dtype == DType::int8;
  dispatch_dtype(
      type, [&]<typename T>(TypeTag<T>) { (is_int8 ? run<T, Int8> : run<T, Float8>)(from, to, stream); });
}

}  // namespace ptrt::cuda
