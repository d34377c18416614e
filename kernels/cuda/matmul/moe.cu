#include "kernels/cuda/base/collective_memory.h"
#include "kernels/cuda/base/per_track.h"
#include "kernels/cuda/base/reduce.cuh"
#include "kernels/cuda/matmul/gemm_tile.cuh"
#include "kernels/cuda/matmul/grouped_gemm.cuh"
#include "kernels/cuda/matmul/moe.h"
#include "kernels/cuda/ops/elementwise.h"

namespace ptrt::cuda {
namespace {

constexpr int kRouteWarps = 4;
constexpr int kGroupWarps = 8;
constexpr int kCombineThreads = 256;
// From this many slots an expert on, on average, products run in grouped_gemm.cuh: there weights are read
// once for 128 rows.
constexpr int kManyRows = 32;

template <typename T>
struct RouteArgs {
  PerTrack<float> router;  // [experts, in]
  const T* x;
  std::int64_t x_stride;
  float* logits;  // [tracks, rows, experts]
  std::int64_t logits_stride;
  ExpertChoice* choices;  // [tracks, rows · top_k]
  int rows, in, experts, top_k;
  float cap;
  bool normalize_top_k;
};

// The expert with the largest logit among those not in `taken`, ties to the lower index; by one
// warp.
__device__ __forceinline__ int argmax_expert(const float* logits, int experts, const ExpertChoice* taken,
                                             int taken_count) {
  float best = -INFINITY;
  int best_expert = experts;
  for (int e = lane_id(); e < experts; e += kWarpSize) {
    bool free = true;
    for (int i = 0; i < taken_count; ++i) free = free && taken[i].expert != e;
    if (free && (best_expert == experts || logits[e] > best)) best = logits[e], best_expert = e;
  }
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, best, distance);
    const int other_expert = __shfl_xor_sync(kAllLanes, best_expert, distance);
    const bool none = best_expert == experts;
    const bool better = other > best || (!(best > other) && other_expert < best_expert);
    if (other_expert < experts && (none || better)) best = other, best_expert = other_expert;
  }
  return best_expert;
}

// One block per row and track: all warps compute the logits, the first chooses.
template <typename T>
__global__ void __launch_bounds__(kRouteWarps* kWarpSize) route_kernel(RouteArgs<T> args) {
  pdl_trigger_and_wait();
  const int row = static_cast<int>(blockIdx.x), track = static_cast<int>(blockIdx.y);
  const int lane = lane_id(), warp = warp_id();
  const T* x = args.x + track * args.x_stride + static_cast<std::int64_t>(row) * args.in;
  float* logits = args.logits + track * args.logits_stride + static_cast<std::int64_t>(row) * args.experts;
  for (int e = warp; e < args.experts; e += kRouteWarps) {
    const float* w = args.router.at[track] + static_cast<std::int64_t>(e) * args.in;
    float sum = 0;
    for (int i = lane; i < args.in; i += kWarpSize) sum += to_float(x[i]) * w[i];
    sum = warp_sum(sum);
    if (args.cap != 0) sum = 0.0f * sum + args.cap * tanhf(sum / args.cap);  // not finite stays that
    if (lane == 0) logits[e] = sum;
  }
  __syncthreads();
  if (warp != 0) return;

  ExpertChoice* choices = args.choices + (static_cast<std::int64_t>(track) * args.rows + row) * args.top_k;
  for (int i = 0; i < args.top_k; ++i) {
    const int expert = argmax_expert(logits, args.experts, choices, i);
    if (lane == 0) choices[i] = {expert, logits[expert]};
    __syncwarp();
  }
  float zeros = 0;  // NaN where a logit is not finite: then all weights are, whatever was chosen
  for (int e = lane; e < args.experts; e += kWarpSize) zeros += 0.0f * logits[e];
  zeros = warp_sum(zeros);
  const float max_logit = logits[choices[0].expert];
  float all = zeros;
  if (!args.normalize_top_k) {
    for (int e = lane; e < args.experts; e += kWarpSize) all += expf(logits[e] - max_logit);
    all = warp_sum(all);
  }
  if (lane != 0) return;
  float chosen = zeros;
  for (int i = 0; i < args.top_k; ++i) chosen += choices[i].weight = expf(choices[i].weight - max_logit);
  const float sum = args.normalize_top_k ? chosen : all;
  for (int i = 0; i < args.top_k; ++i) choices[i].weight /= sum;
}

struct GroupArgs {
  const ExpertChoice* choices;
  std::int32_t *grouped_slots, *expert_begin;
  int slots, experts;
};

// One warp per expert: counts the slots of lower experts, which is the offset of its own; then
// lists its own in ascending order. Warps are independent. Grid: x over experts, y over tracks.
__global__ void __launch_bounds__(kGroupWarps* kWarpSize) group_kernel(GroupArgs args) {
  pdl_trigger_and_wait();
  const int track = static_cast<int>(blockIdx.y), lane = lane_id();
  const int expert = static_cast<int>(blockIdx.x) * kGroupWarps + warp_id();
  if (expert >= args.experts) return;
  const ExpertChoice* choices = args.choices + static_cast<std::int64_t>(track) * args.slots;
  std::int32_t* grouped = args.grouped_slots + static_cast<std::int64_t>(track) * args.slots;
  std::int32_t* begin = args.expert_begin + track * (args.experts + 1);
  int offset = 0;
  for (int slot = lane; slot < args.slots; slot += kWarpSize) offset += choices[slot].expert < expert ? 1 : 0;
  offset = warp_sum(offset);
  if (lane == 0) begin[expert] = offset;
  if (lane == 0 && expert == 0) begin[args.experts] = args.slots;
  const unsigned lanes_before = (1u << lane) - 1;
  for (int first = 0; first < args.slots; first += kWarpSize) {
    const int slot = first + lane;
    const bool mine = slot < args.slots && choices[slot].expert == expert;
    const unsigned all = __ballot_sync(kAllLanes, mine ? 1 : 0);
    if (mine) grouped[offset + __popc(all & lanes_before)] = slot;
    offset += __popc(all);
  }
}

// Grid: x over tiles of 16 outputs of the jobs, y over experts, z over tracks. A block computes all
// rows of its expert, 8 · kTilesN at a time.
template <typename T, int kTilesN, bool kAligned>
__global__ void __launch_bounds__(kMaxSliceKWarps* kWarpSize, 1) expert_gemm_kernel(ExpertArgs<T> args) {
  pdl_trigger_and_wait();
  const int expert = static_cast<int>(blockIdx.y), track = static_cast<int>(blockIdx.z);
  const std::int32_t* begins = args.expert_begin + track * (args.experts + 1);
  const int begin = begins[expert], end = begins[expert + 1];
  if (begin == end) return;
  const int tiles = ceil_div(args.outs, kTileOuts);
  const ExpertJob<T>& job = args.jobs[static_cast<int>(blockIdx.x) / tiles];
  const int first_out = static_cast<int>(blockIdx.x) % tiles * kTileOuts;
  const std::int32_t* slots = args.grouped_slots + static_cast<std::int64_t>(track) * args.slots;
  const T* w = job.weights.at[track] + static_cast<std::int64_t>(expert) * args.outs * args.in;
  const T* x = job.x + track * job.x_stride;
  T* y = job.y + track * job.y_stride;
  for (int first = begin; first < end; first += 8 * kTilesN) {
    const auto row = [&](int i) -> const T* {
      if (first + i >= end) return nullptr;
      return x + static_cast<std::int64_t>(slots[first + i] / args.slots_per_row) * args.in;
    };
    const auto epilogue = [&](int out, int i, float sum) {
      store(y + static_cast<std::int64_t>(slots[first + i]) * args.outs + out, sum);
    };
    gemm_tile<kTilesN, kAligned>(w, args.in, args.outs, first_out, row, static_cast<float*>(shared_memory()),
                                 epilogue);
  }
}

template <int kTilesN, bool kAligned, typename T>
void launch_expert_gemm(const ExpertArgs<T>& args, int jobs, std::int64_t tracks, cudaStream_t stream) {
  const int warps = slice_k_warps(args.in);
  const dim3 grid(static_cast<unsigned>(ceil_div(args.outs, kTileOuts) * jobs),
                  static_cast<unsigned>(args.experts), static_cast<unsigned>(tracks));
  launch({"expert_gemm", grid, dim3(static_cast<unsigned>(warps * kWarpSize)), stream,
          partial_sums_bytes<kTilesN>(warps)},
         expert_gemm_kernel<T, kTilesN, kAligned>, args);
}

template <typename T>
ExpertJob<T> expert_job(const TrackWeights& weights, const Tensor& x, const Tensor& y, std::int64_t first,
                        std::int64_t count) {
  const std::int64_t x_stride = x.tracks == 1 ? 0 : x.track_stride;
  return {per_track<T>(weights, first, count), static_cast<const T*>(x.data) + first * x_stride,
          static_cast<T*>(y.data) + first * y.track_stride, x_stride, y.track_stride};
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

// Whether products with inputs of this width have many rows an expert, and rows aligned as they need.
bool many_rows(const MoeJob& job, std::int64_t in) {
  return job.x.rows * job.shape.top_k >= kManyRows * job.shape.experts && in % 8 == 0;
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

  // gate_out: the hidden values if many_rows() of the width of x, else the gates.
  void gate_up_proj() const {
    ExpertArgs<T> args = expert_args(job_.x.width, job_.gate_out.width, job_.shape.top_k);
    args.jobs[0] = expert_job<T>(*job_.gate, job_.x, job_.gate_out, first_, count_);
    args.jobs[1] = expert_job<T>(*job_.up, job_.x, job_.up_out, first_, count_);
    if (!many_rows(job_, job_.x.width)) return few_rows_gemm(args, 2);
    dispatch_gate(job_.shape.activation,
                  [&]<class Gate>() { launch_grouped_gemm<Gate>(args, count_, stream_); });
  }
  void down_proj() const {
    ExpertArgs<T> args = expert_args(job_.gate_out.width, job_.expert_out.width, 1);
    args.jobs[0] = expert_job<T>(*job_.down, job_.gate_out, job_.expert_out, first_, count_);
    if (many_rows(job_, job_.gate_out.width))
      launch_grouped_gemm<NoGate>(args, count_, stream_);
    else
      few_rows_gemm(args, 1);
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
  ExpertArgs<T> expert_args(std::int64_t in, std::int64_t outs, std::int64_t slots_per_row) const {
    ExpertArgs<T> args{};
    args.grouped_slots = grouped_slots_;
    args.expert_begin = expert_begin_;
    args.in = static_cast<int>(in);
    args.outs = static_cast<int>(outs);
    args.experts = static_cast<int>(job_.shape.experts);
    args.slots = slots_;
    args.slots_per_row = static_cast<int>(slots_per_row);
    return args;
  }
  void few_rows_gemm(const ExpertArgs<T>& args, int jobs) const {
    if (args.in % 8 != 0)
      launch_expert_gemm<4, false>(args, jobs, count_, stream_);
    else if (slots_ <= 16)
      launch_expert_gemm<2, true>(args, jobs, count_, stream_);
    else
      launch_expert_gemm<8, true>(args, jobs, count_, stream_);
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
    for_track_groups(job.y.tracks, [&](std::int64_t first, std::int64_t count) {
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
  if (!many_rows(job, job.x.width)) glu(job.shape.activation, job.gate_out, job.up_out, stream);
  each_group([](const auto& group) {
    group.down_proj();
    group.combine();
  });
}

}  // namespace ptrt::cuda
