#include <initializer_list>
#include <span>

#include "kernels/cuda/base/collective_memory.h"
#include "kernels/cuda/base/per_track.h"
#include "kernels/cuda/matmul/gemm_tile.cuh"
#include "kernels/cuda/matmul/grouped_gemm.cuh"
#include "kernels/cuda/matmul/moe.h"
#include "kernels/cuda/matmul/moe_route.cuh"
#include "kernels/cuda/ops/elementwise.h"

namespace ptrt::cuda {
namespace {

constexpr int kCombineThreads = 256;
// From this many slots an expert on, on average, products run in grouped_gemm.cuh: there weights are read
// once for 128 rows.
constexpr int kManyRows = 32;

// Groups of eight rows that a block of expert_gemm_kernel() computes at once, at most; int8's sums by groups take
// registers of their own.
template <typename W>
inline constexpr int kMostTilesN = std::is_same_v<W, Int8> ? 4 : 8;

// The scales of an expert's matrix; null where weights have none.
template <typename W>
__device__ __forceinline__ const void* scales_of_expert(const void* scales, int expert, int outs, int in) {
  if constexpr (std::is_same_v<W, Float8>)
    return static_cast<const float*>(scales) + expert * std::int64_t{outs};
  if constexpr (std::is_same_v<W, Int8>)
    return static_cast<const unsigned char*>(scales) + expert * scale_blocks(outs, in) * kScaleBlockBytes;
  return nullptr;
}

// Grid: x over tiles of 16 outputs of the jobs, y over experts, z over tracks. A block computes all
// rows of its expert, 8 · kTilesN at a time.
template <typename T, typename W, int kTilesN, bool kAligned>
__global__ void __launch_bounds__(kMaxSliceKWarps* kWarpSize, 1) expert_gemm_kernel(ExpertArgs<T, W> args) {
  pdl_trigger_and_wait();
  const int expert = static_cast<int>(blockIdx.y), track = static_cast<int>(blockIdx.z);
  const std::int32_t* begins = args.expert_begin + track * (args.experts + 1);
  const int begin = begins[expert], end = begins[expert + 1];
  if (begin == end) return;
  const int tiles = ceil_div(args.outs, kTileOuts);
  const ExpertJob<T, W>& job = args.jobs[static_cast<int>(blockIdx.x) / tiles];
  const int first_out = static_cast<int>(blockIdx.x) % tiles * kTileOuts;
  const std::int32_t* slots = args.grouped_slots + static_cast<std::int64_t>(track) * args.slots;
  const W* w = job.weights.at[track] + static_cast<std::int64_t>(expert) * args.outs * row_stride<W>(args.in);
  const void* scales = scales_of_expert<W>(job.scales.at[track], expert, args.outs, args.in);
  const TileRows<T, W, kAligned> weights(w, scales, args.in, args.outs, first_out);
  const T* x = job.x + track * job.x_stride;
  T* y = job.y + track * job.y_stride;
  for (int first = begin; first < end; first += 8 * kTilesN) {
    const auto row = [&](int i) -> const T* {
      if (first + i >= end) return nullptr;
      return x + static_cast<std::int64_t>(slots[first + i] / args.slots_per_row) * args.in;
    };
    const auto epilogue = [&](int out, int i, float sum) {
      if constexpr (std::is_same_v<W, Float8>) sum *= static_cast<const float*>(scales)[out];
      store(y + static_cast<std::int64_t>(slots[first + i]) * args.outs + out, sum);
    };
    gemm_tile<kTilesN>(weights, args.in, args.outs, first_out, row, static_cast<float*>(shared_memory()),
                       epilogue);
  }
}

template <int kTilesN, bool kAligned, typename T, typename W>
void launch_expert_gemm(const ExpertArgs<T, W>& args, int jobs, std::int64_t tracks, cudaStream_t stream) {
  const int warps = slice_k_warps(args.in);
  const dim3 grid(static_cast<unsigned>(ceil_div(args.outs, kTileOuts) * jobs),
                  static_cast<unsigned>(args.experts), static_cast<unsigned>(tracks));
  launch({"expert_gemm", grid, dim3(static_cast<unsigned>(warps * kWarpSize)), stream,
          partial_sums_bytes<kTilesN>(warps)},
         expert_gemm_kernel<T, W, kTilesN, kAligned>, args);
}

// One product of all experts.
struct ExpertProduct {
  const TrackWeights* weights = nullptr;
  const Tensor *x = nullptr, *y = nullptr;

  DType type(std::int64_t track) const { return (*weights)[static_cast<std::size_t>(track)].dtype; }
};

template <typename T, typename W>
ExpertJob<T, W> expert_job(const ExpertProduct& product, std::int64_t first, std::int64_t count) {
  const Tensor &x = *product.x, &y = *product.y;
  ExpertJob<T, W> job{};
  job.weights = per_track<W>(*product.weights, first, count);
  for (std::int64_t t = 0; t < count; ++t)
    job.scales.set(t, (*product.weights)[static_cast<std::size_t>(first + t)].scales);
  job.x_stride = x.tracks == 1 ? 0 : x.track_stride;
  job.y_stride = y.track_stride;
  job.x = static_cast<const T*>(x.data) + first * job.x_stride;
  job.y = static_cast<T*>(y.data) + first * job.y_stride;
  return job;
}

template <typename T, typename Out>
struct CombineArgs {
  const ExpertChoice* choices;
  const T* expert_out;
  Out* y;
  std::int64_t expert_stride, y_stride;
  int rows, width, top_k;
  bool triggers_early;
};

// y[r] = Σ_slot weight · expert_out[slot], in the order of choice. One block per row and track.
template <typename T, typename Out>
__global__ void combine_kernel(CombineArgs<T, Out> args) {
  pdl_trigger_and_wait(args.triggers_early);
  const int row = static_cast<int>(blockIdx.x), track = static_cast<int>(blockIdx.y);
  const std::int64_t slot = static_cast<std::int64_t>(row) * args.top_k;
  const ExpertChoice* choices =
      args.choices + static_cast<std::int64_t>(track) * args.rows * args.top_k + slot;
  const T* from = args.expert_out + track * args.expert_stride + slot * args.width;
  Out* y = args.y + track * args.y_stride + static_cast<std::int64_t>(row) * args.width;
  for (int i = thread_id(); i < args.width; i += kCombineThreads) {
    float sum = 0;
    for (int s = 0; s < args.top_k; ++s)
      sum += choices[s].weight * to_float(from[static_cast<std::int64_t>(s) * args.width + i]);
    store(y + i, sum);
  }
}

// Whether products with inputs of this width have many rows an expert, and rows aligned as they need. Tiles of
// many rows take no 8-bit weights.
bool many_rows(const MoeJob& job, std::int64_t in, std::initializer_list<const TrackWeights*> matrices) {
  for (const TrackWeights* weights : matrices)
    for (const Weight& w : *weights)
      if (is_8bit(w.dtype)) return false;
  return job.x.rows * job.shape.top_k >= kManyRows * job.shape.experts && in % 8 == 0;
}
bool many_rows_gate_up(const MoeJob& job) {
  return many_rows(job, job.x.width, {job.gate, job.up});
}

// Calls launch(first, count) for groups of up to kTracksPerLaunch tracks whose matrices have the same types.
template <class Launch>
void for_alike_tracks(const MoeJob& job, const Launch& launch) {
  const auto alike = [&](std::int64_t a, std::int64_t b) {
    for (const TrackWeights* weights : {job.gate, job.up, job.down})
      if ((*weights)[static_cast<std::size_t>(a)].dtype != (*weights)[static_cast<std::size_t>(b)].dtype)
        return false;
    return true;
  };
  for (std::int64_t first = 0, count = 0; first < job.y.tracks; first += count) {
    count = 1;
    while (count < kTracksPerLaunch && first + count < job.y.tracks && alike(first, first + count)) ++count;
    launch(first, count);
  }
}

// The launches for one group of tracks.
template <typename T>
class Launches {
 public:
  Launches(const MoeJob& job, std::int64_t first, std::int64_t count, ExpertChoice* choices,
           std::int32_t* grouped_slots, std::int32_t* expert_begin, cudaStream_t stream)
      : job_(job),
        first_(first),
        count_(count),
        stream_(stream),
        choices_(choices),
        grouped_slots_(grouped_slots),
        expert_begin_(expert_begin),
        slots_(static_cast<int>(job.x.rows * job.shape.top_k)) {}

  void route() const {
    RouteArgs<T> args{};
    args.router = per_track<float>(*job_.router, first_, count_);
    args.x_stride = job_.x.tracks == 1 ? 0 : job_.x.track_stride;
    args.x = static_cast<const T*>(job_.x.data) + first_ * args.x_stride;
    args.logits = job_.router_logits.row(first_, 0);
    args.logits_stride = job_.router_logits.track_stride;
    args.choices = choices_;
    args.rows = static_cast<int>(job_.x.rows);
    args.in = static_cast<int>(job_.x.width);
    args.experts = static_cast<int>(job_.shape.experts);
    args.top_k = static_cast<int>(job_.shape.top_k);
    args.cap = job_.shape.router_logit_cap;
    args.normalize_top_k = job_.shape.normalize_top_k;
    launch({"route", rows_by_tracks(), dim3(kRouteWarps * kWarpSize), stream_}, route_kernel<T>, args);
    const dim3 experts(static_cast<unsigned>(ceil_div(args.experts, kGroupWarps)),
                       static_cast<unsigned>(count_));
    launch({"group_by_expert", experts, dim3(kGroupWarps * kWarpSize), stream_}, group_kernel,
           GroupArgs{choices_, grouped_slots_, expert_begin_, slots_, args.experts});
  }

  // gate_out: the hidden values if many_rows_gate_up(), else the gates.
  void gate_up_proj() const {
    const ExpertProduct gate{job_.gate, &job_.x, &job_.gate_out}, up{job_.up, &job_.x, &job_.up_out};
    if (many_rows_gate_up(job_)) {
      ExpertArgs<T> args = expert_args<T>(job_.x.width, job_.gate_out.width, job_.shape.top_k);
      args.jobs[0] = expert_job<T, T>(gate, first_, count_);
      args.jobs[1] = expert_job<T, T>(up, first_, count_);
      dispatch_gate(job_.shape.activation,
                    [&]<class Gate>() { launch_grouped_gemm<Gate>(args, count_, stream_); });
    } else if (gate.type(first_) == up.type(first_)) {
      const ExpertProduct both[] = {gate, up};
      few_rows_gemm(both, job_.shape.top_k);
    } else {
      few_rows_gemm({&gate, 1}, job_.shape.top_k);
      few_rows_gemm({&up, 1}, job_.shape.top_k);
    }
  }
  void down_proj() const {
    const ExpertProduct down{job_.down, &job_.gate_out, &job_.expert_out};
    if (!many_rows(job_, job_.gate_out.width, {job_.down})) return few_rows_gemm({&down, 1}, 1);
    ExpertArgs<T> args = expert_args<T>(job_.gate_out.width, job_.expert_out.width, 1);
    args.jobs[0] = expert_job<T, T>(down, first_, count_);
    launch_grouped_gemm<NoGate>(args, count_, stream_);
  }

  void combine() const {
    if (job_.y.dtype == DType::float32)
      combine_into<float>();
    else
      combine_into<T>();
  }

 private:
  template <typename Out>
  void combine_into() const {
    const CombineArgs<T, Out> args{choices_,
                                   job_.expert_out.row_as<T>(first_, 0),
                                   job_.y.row_as<Out>(first_, 0),
                                   job_.expert_out.track_stride,
                                   job_.y.track_stride,
                                   static_cast<int>(job_.x.rows),
                                   static_cast<int>(job_.y.width),
                                   static_cast<int>(job_.shape.top_k),
                                   may_trigger_early(job_.y.data)};
    launch({"combine_experts", rows_by_tracks(), dim3(kCombineThreads), stream_}, combine_kernel<T, Out>,
           args);
  }
  dim3 rows_by_tracks() const { return {static_cast<unsigned>(job_.x.rows), static_cast<unsigned>(count_)}; }
  template <typename W>
  ExpertArgs<T, W> expert_args(std::int64_t in, std::int64_t outs, std::int64_t slots_per_row) const {
    ExpertArgs<T, W> args{};
    args.grouped_slots = grouped_slots_;
    args.expert_begin = expert_begin_;
    args.in = static_cast<int>(in);
    args.outs = static_cast<int>(outs);
    args.experts = static_cast<int>(job_.shape.experts);
    args.slots = slots_;
    args.slots_per_row = static_cast<int>(slots_per_row);
    return args;
  }
  // Of one type and size.
  void few_rows_gemm(std::span<const ExpertProduct> products, std::int64_t slots_per_row) const {
    switch (products[0].type(first_)) {
      case DType::int8:
        return few_rows_gemm_of<Int8>(products, slots_per_row);
      case DType::float8_e4m3:
        return few_rows_gemm_of<Float8>(products, slots_per_row);
      default:
        return few_rows_gemm_of<T>(products, slots_per_row);
    }
  }
  template <typename W>
  void few_rows_gemm_of(std::span<const ExpertProduct> products, std::int64_t slots_per_row) const {
    auto args = expert_args<W>(products[0].x->width, products[0].y->width, slots_per_row);
    const int jobs = static_cast<int>(products.size());
    for (std::size_t i = 0; i < products.size(); ++i)
      args.jobs[i] = expert_job<T, W>(products[i], first_, count_);
    if (args.in % 8 != 0)
      launch_expert_gemm<4, false>(args, jobs, count_, stream_);
    else if (slots_ <= 16)
      launch_expert_gemm<2, true>(args, jobs, count_, stream_);
    else
      launch_expert_gemm<kMostTilesN<W>, true>(args, jobs, count_, stream_);
  }

  const MoeJob& job_;
  std::int64_t first_, count_;
  cudaStream_t stream_;
  ExpertChoice* choices_;
  std::int32_t *grouped_slots_, *expert_begin_;
  int slots_;
};

}  // namespace

Moe::Moe(const WorkLimits& limits) : max_slots_(limits.rows * limits.top_k), max_experts_(limits.experts) {
  if (limits.experts == 0) return;
  const auto tracks = static_cast<std::size_t>(limits.tracks), slots = static_cast<std::size_t>(max_slots_);
  choices_ = allocate_device_array<ExpertChoice>(tracks * slots, "the choice of experts");
  grouped_slots_ = allocate_device_array<std::int32_t>(tracks * slots, "the choice of experts");
  expert_begin_ = allocate_device_array<std::int32_t>(tracks * static_cast<std::size_t>(limits.experts + 1),
                                                      "the choice of experts");
}

void Moe::run(const MoeJob& job, cudaStream_t stream) const {
  const std::int64_t slots = job.x.rows * job.shape.top_k, experts = job.shape.experts;
  const auto each_group = [&](const auto& work) {
    for_alike_tracks(job, [&](std::int64_t first, std::int64_t count) {
      dispatch_dtype(job.x.dtype, [&]<typename T>(TypeTag<T>) {
        work(Launches<T>(job, first, count, choices_.get() + first * slots,
                         grouped_slots_.get() + first * slots, expert_begin_.get() + first * (experts + 1),
                         stream));
      });
    });
  };
  each_group([](const auto& group) {
    group.route();
    group.gate_up_proj();
  });
  if (!many_rows_gate_up(job)) glu(job.shape.activation, job.gate_out, job.up_out, stream);
  each_group([](const auto& group) {
    group.down_proj();
    group.combine();
  });
}

}  // namespace ptrt::cuda
