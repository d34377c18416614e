#include <algorithm>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/decode_pages.cuh"
#include "kernels/cuda/host/scratch_size.h"

namespace ptrt::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr float kLog2E = 1.4426950408889634f;
static_assert(kMaxSplitTokens == kWarps * kWarp * kTokensOfPage, "a lane looks up one page of its warp");

template <typename T>
struct DecodeArgs {
  const T* q;
  T* out;
  std::int64_t q_stride, out_stride;  // between tracks
  float* partial;                     // [tracks, single rows, heads, splits, head_dim + 2]; null: one split
  std::int32_t* finished;  // [tracks, single rows, kv_heads] splits that are, zero between launches
  int singles, splits, split_tokens, tracks, heads, kv_heads, head_dim, window;
  float scale;  // log2(e) / sqrt(head_dim): scores for powers of two
  StepView step;
  LayerPool<T> pool;
};

// Of one item (track and single row).
struct Range {
  int row, first, last;  // positions that the row sees
};

template <typename T>
__device__ __forceinline__ Range range_of(const DecodeArgs<T>& args, int single) {
  Range range;
  range.row = args.step.single_rows[single];
  range.last = args.step.positions[range.row];
  range.first = args.window > 0 && range.last >= args.window ? range.last - args.window + 1 : 0;
  return range;
}

template <typename T>
__device__ __forceinline__ float* partial_of(const DecodeArgs<T>& args, int item, int head, int split) {
  const std::int64_t index = (static_cast<std::int64_t>(item) * args.heads + head) * args.splits + split;
  return args.partial + index * (args.head_dim + 2);
}

template <typename T, int kChunks, int kStages>
constexpr std::size_t warp_bytes() {
  // The sums of a warp take the place of its stages when these have been used.
  constexpr std::size_t kSums = sizeof(float) * kHeads * WarpAttention<T, kChunks, true>::kPitch;
  return std::max(kStages * PageStage<T, kChunks>::kBytes, kSums);
}

// The pages of one warp within a split, in turns with the block's other warps, through its stages.
template <typename T, int kChunks, bool kWhole, int kStages>
class PageRing {
 public:
  using Stage = PageStage<T, kChunks>;

  // Tokens [begin, end) of the split that begins at position `split_begin`. Looks its pages up, and asks for
  // those of the first stages that only earlier steps have written.
  __device__ __forceinline__ PageRing(const DecodeArgs<T>& args, int track, int kv_head, const Range& range,
                                      int split_begin, int begin, int end, T* memory)
      : args_(args),
        track_(track),
        kv_head_(kv_head),
        first_page_(begin / kTokensOfPage + static_cast<int>(threadIdx.x) / kWarp),
        begin_(begin),
        end_(end),
        memory_(memory) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, page = page_number(lane);
    if (page * kTokensOfPage < end_)
      page_of_lane_ = static_cast<int>(page_of(args.step, range.row, split_begin + page * kTokensOfPage));
    // This step's token is the last that the row sees.
    const int last_page = (range.last - split_begin) / kTokensOfPage;
    while (filled_ < kStages && page_number(filled_) < last_page) fill();
  }

  __device__ __forceinline__ void fill_rest() {
    while (filled_ < kStages) fill();
  }

  // All of the warp's pages, in order.
  template <class Take>
  __device__ __forceinline__ void each(const Take& take) {
    for (int i = 0; there(i); ++i) {
      wait_copies<kStages - 1>();
      __syncwarp();
      const int first = page_number(i) * kTokensOfPage;
      take(Stage{memory_ + i % kStages * Stage::kElements}, max(begin_ - first, 0),
           min(end_ - first, kTokensOfPage));
      __syncwarp();
      fill();
    }
    wait_copies<0>();
    __syncwarp();
  }

 private:
  __device__ __forceinline__ int page_number(int i) const { return first_page_ + i * kWarps; }
  __device__ __forceinline__ bool there(int i) const { return page_number(i) * kTokensOfPage < end_; }

  __device__ __forceinline__ void fill() {
    if (there(filled_)) {
      const int first = page_number(filled_) * kTokensOfPage;
      const T* keys = args_.pool.keys(__shfl_sync(kAllLanes, page_of_lane_, filled_), track_, kv_head_);
      Stage{memory_ + filled_ % kStages * Stage::kElements}.template fill<kWhole>(
          keys, keys + args_.pool.values_offset, max(begin_ - first, 0), min(end_ - first, kTokensOfPage),
          args_.head_dim);
    }
    commit_copies();
    ++filled_;
  }

  const DecodeArgs<T>& args_;
  int track_, kv_head_, first_page_, begin_, end_, filled_ = 0, page_of_lane_ = 0;
  T* memory_;
};

// Adds what the warps have of one element of a head, and stores it.
template <typename T, int kPitch>
__device__ __forceinline__ void finish(const DecodeArgs<T>& args, const unsigned char* memory,
                                       std::size_t bytes_of_warp, const float2* statistics, int head,
                                       int element, T* out, float* partial) {
  float largest = -INFINITY, total = 0, sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) largest = fmaxf(largest, statistics[warp * kHeads + head].x);
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    const float2 mine = statistics[warp * kHeads + head];
    const float weight = exp2f(mine.x - largest);
    total += mine.y * weight;
    sum += reinterpret_cast<const float*>(memory + warp * bytes_of_warp)[head * kPitch + element] * weight;
  }
  if (partial == nullptr) {
    store(out + element, sum / total);
    return;
  }
  partial[element] = sum;
  if (element == 0) partial[args.head_dim] = largest, partial[args.head_dim + 1] = total;
}

// Puts the splits of one head together, by one warp. What other blocks have written is read from the L2
// cache.
template <typename T>
__device__ __forceinline__ void combine_splits(const DecodeArgs<T>& args, int item, int head, int splits,
                                               T* out) {
  constexpr int kPerLane = static_cast<int>(kMaxHeadDim) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, head_dim = args.head_dim;
  const float* first = partial_of(args, item, head, 0);
  const std::int64_t pitch = head_dim + 2;
  float largest = -INFINITY;
  for (int s = lane; s < splits; s += kWarp) largest = fmaxf(largest, __ldcg(first + s * pitch + head_dim));
  largest = warp_max(largest);
  float total = 0, sum[kPerLane] = {};
  for (int begin = 0; begin < splits; begin += kWarp) {
    float weight = 0;  // of split begin + lane
    if (const float* mine = first + (begin + lane) * pitch + head_dim; begin + lane < splits) {
      weight = exp2f(__ldcg(mine) - largest);
      total += __ldcg(mine + 1) * weight;
    }
    const int count = min(splits - begin, kWarp);
#pragma unroll 8
    for (int s = 0; s < count; ++s) {
      const float* partial = first + (begin + s) * pitch;
      const float of_split = __shfl_sync(kAllLanes, weight, s);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i)
        if (lane + i * kWarp < head_dim) sum[i] += __ldcg(partial + lane + i * kWarp) * of_split;
    }
  }
  total = warp_sum(total);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i)
    if (lane + i * kWarp < head_dim) store(out + lane + i * kWarp, sum[i] / total);
}

// Grid: x over items (track, single row) and their splits, y over KV heads; the block takes all query heads
// of its KV head, kHeads at a time; its warps take pages in turn. The block that finishes an item's last
// split puts its splits together.
template <typename T, int kChunks, bool kWhole, int kStages>
__global__ void __launch_bounds__(kThreads, kChunks > 4 ? 1 : 2) decode_kernel(DecodeArgs<T> args) {
  let_next_start();
  using Warp = WarpAttention<T, kChunks, kWhole>;
  constexpr std::size_t kWarpBytes = warp_bytes<T, kChunks, kStages>();
  __shared__ float2 statistics[kWarps * kHeads];
  __shared__ bool is_last;
  const int kv_head = static_cast<int>(blockIdx.x) % args.kv_heads;
  const int split_index = static_cast<int>(blockIdx.x) / args.kv_heads % args.splits;
  const int item = static_cast<int>(blockIdx.x) / args.kv_heads / args.splits;
  const int track = item / args.singles;
  // What a step says of its rows no kernel writes.
  const Range range = range_of(args, item % args.singles);
  const int first_split = range.first / args.split_tokens;
  const int split_begin = (first_split + split_index) * args.split_tokens;
  if (split_begin > range.last) {
    wait_for_previous();
    return;
  }

  const int begin = max(range.first - split_begin, 0);
  const int end = min(range.last + 1 - split_begin, args.split_tokens);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  auto* memory = static_cast<unsigned char*>(shared_memory());
  auto* mine = memory + warp * kWarpBytes;
  const int group = args.heads / args.kv_heads, head_dim = args.head_dim;
  const std::int64_t row_begin = static_cast<std::int64_t>(range.row) * args.heads * head_dim;
  for (int done = 0; done < group; done += kHeads) {
    PageRing<T, kChunks, kWhole, kStages> ring(args, track, kv_head, range, split_begin, begin, end,
                                               reinterpret_cast<T*>(mine));
    if (done == 0) wait_for_previous();
    ring.fill_rest();
    const int heads = min(kHeads, group - done), head = kv_head * group + done;
    Warp state(args.q + track * args.q_stride + row_begin + head * head_dim, heads, head_dim, args.scale);
    ring.each(
        [&](const PageStage<T, kChunks>& stage, int from, int to) { state.take_page(stage, from, to); });
    state.save(reinterpret_cast<float*>(mine), statistics + warp * kHeads);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < heads * head_dim; i += kThreads) {
      const int h = i / head_dim;
      finish<T, Warp::kPitch>(
          args, memory, kWarpBytes, statistics, h, i % head_dim,
          args.out + track * args.out_stride + row_begin + (head + h) * head_dim,
          args.partial == nullptr ? nullptr : partial_of(args, item, head + h, split_index));
    }
    __syncthreads();
  }
  if (args.partial == nullptr) return;

  const int splits = range.last / args.split_tokens - first_split + 1;
  if (threadIdx.x == 0) {
    __threadfence();  // behind a barrier: what the whole block wrote
    std::int32_t* finished = args.finished + item * args.kv_heads + kv_head;
    is_last = atomicAdd(finished, 1) == splits - 1;
    if (is_last) *finished = 0;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  for (int h = warp; h < group; h += kWarps) {
    const int head = kv_head * group + h;
    combine_splits(args, item, head, splits,
                   args.out + track * args.out_stride + row_begin + head * head_dim);
  }
}

template <int kChunks, bool kWhole, int kStages, typename T>
void launch_stages(const DecodeArgs<T>& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.tracks * args.singles * args.splits * args.kv_heads));
  launch({"decode_attention", grid, dim3(kThreads), stream, kWarps * warp_bytes<T, kChunks, kStages>()},
         decode_kernel<T, kChunks, kWhole, kStages>, args);
}

template <int kChunks, bool kWhole, typename T>
void launch_decode(const DecodeArgs<T>& args, cudaStream_t stream) {
  constexpr int kMost = kChunks > 4 ? 2 : 3, kBlocks = kChunks > 4 ? 1 : 2;
  if (device_traits().blocks_with(kWarps * warp_bytes<T, kChunks, kMost>()) >= kBlocks)
    launch_stages<kChunks, kWhole, kMost>(args, stream);
  else
    launch_stages<kChunks, kWhole, kMost - 1>(args, stream);
}

template <typename T>
void launch_kernel(const AttentionJob& job, const StepInput& step, const Splits& splits, float* partial,
                   std::int32_t* finished) {
  const AttentionShape& shape = job.shape;
  DecodeArgs<T> args{};
  args.q = static_cast<const T*>(job.q.data);
  args.out = static_cast<T*>(job.out.data);
  args.q_stride = job.q.track_stride;
  args.out_stride = job.out.track_stride;
  args.partial = splits.count > 1 ? partial : nullptr;
  args.finished = finished;
  args.singles = static_cast<int>(step.single_count());
  args.splits = static_cast<int>(splits.count);
  args.split_tokens = static_cast<int>(splits.tokens);
  args.tracks = static_cast<int>(job.q.tracks);
  args.heads = static_cast<int>(shape.heads);
  args.kv_heads = static_cast<int>(shape.kv_heads);
  args.head_dim = static_cast<int>(shape.head_dim);
  args.window = static_cast<int>(shape.window);
  args.scale = kLog2E / sqrtf(static_cast<float>(shape.head_dim));
  args.step = step.view();
  args.pool = layer_pool<T>(job.pool, job.layer);
  // A head's vectors start at multiples of 16 bytes where head_dim is a multiple of 8.
  if (shape.head_dim % 8 != 0)
    launch_decode<8, false>(args, job.stream);
  else if (shape.head_dim <= 64)
    launch_decode<2, true>(args, job.stream);
  else if (shape.head_dim <= 96)
    launch_decode<3, true>(args, job.stream);
  else if (shape.head_dim <= 128)
    launch_decode<4, true>(args, job.stream);
  else
    launch_decode<8, true>(args, job.stream);
}

}  // namespace

DecodeAttention::DecodeAttention(const WorkLimits& limits, const Stream& stream)
    : max_context_(limits.context) {
  const std::int64_t splits = most_head_splits(limits);
  if (splits == 0) return;
  partial_ = allocate_device_array<float>(static_cast<std::size_t>(splits * (limits.head_dim + 2)),
                                          "the splits of decode attention");
  const auto counters = static_cast<std::size_t>(limits.tracks * limits.sequences * limits.heads);
  finished_ = allocate_device_array<std::int32_t>(counters, "the splits of decode attention");
  PTRT_CUDA_CHECK(cudaMemsetAsync(finished_.get(), 0, counters * sizeof(std::int32_t), stream.get()));
}

std::int64_t DecodeAttention::context_of(const StepInput& step) const {
  std::int64_t context = kMinSplitTokens;
  while (context < step.longest_context()) context *= 2;
  return std::min(context, max_context_);
}

void DecodeAttention::run(const AttentionJob& job, const StepInput& step) const {
  if (step.single_count() == 0) return;
  const Splits splits = decode_splits(job.q.tracks * step.single_count() * job.shape.kv_heads,
                                      context_of(step), job.shape.window);
  with_element(job.q.dtype, [&]<typename T>(Element<T>) {
    launch_kernel<T>(job, step, splits, partial_.get(), finished_.get());
  });
}

}  // namespace ptrt::cuda
