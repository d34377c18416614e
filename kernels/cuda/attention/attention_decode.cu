#include <algorithm>
#include <cstddef>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/decode_warp.cuh"
#include "kernels/cuda/host/scratch_size.h"
#include "kernels/cuda/ptx/cluster.cuh"

namespace ptrt::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kMostBlocks = static_cast<int>(kClusterBlocks);
constexpr float kLog2E = 1.4426950408889634f;
static_assert(kMaxSplitTokens == kWarps * kWarpSize * kPageSize, "a lane looks up one page of its warp");

template <typename T>
struct DecodeArgs {
  const T* q;
  T* out;
  std::int64_t q_stride, out_stride;  // between tracks
  float* partial;                     // [tracks, decode rows, heads, splits, head_dim + 2]; null: one split
  std::int32_t* splits_done;          // [tracks, decode rows, kv_heads], zero between launches
  int decode_rows, splits, split_tokens, tracks, heads, kv_heads, head_dim, window;
  int cluster;  // blocks of a split, kMostBlocks at most; their warps take its pages in turn
  float scale;  // log2(e) · the scale of q · k: the softmax uses powers of two
  StepView step;
  LayerPool<T> pool;
};

// The positions [first, last] that a decode row sees. Those before first_new are of earlier steps.
struct Range {
  int row, first, last, first_new;
};

static_assert(sizeof(DecodeRow) == sizeof(int2) && offsetof(DecodeRow, first_new) == sizeof(int));
template <typename T>
__device__ __forceinline__ Range range_of(const DecodeArgs<T>& args, int decode_row) {
  Range range;
  const int2 of_step = reinterpret_cast<const int2*>(args.step.decode_rows)[decode_row];  // a DecodeRow
  range.row = of_step.x;
  range.first_new = of_step.y;
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
  // A warp's output sums overwrite its stages after their last use.
  constexpr std::size_t kOutput = sizeof(float) * kHeads * WarpAttention<T, kChunks, true>::kPitch;
  return std::max(kStages * PageStage<T, kChunks>::kBytes, kOutput);
}

// What follows the warps' memory: their statistics, and for a cluster the block's part of the output.
struct BlockEnd {
  float2 softmax_stats[kWarps * kHeads];  // [warp][head]: maximum, sum
  bool is_last;
};
template <typename T, int kChunks, int kStages>
std::size_t block_bytes(int cluster, int head_dim) {
  const std::size_t part = cluster > 1 ? sizeof(float) * kHeads * static_cast<std::size_t>(head_dim + 2) : 0;
  return kWarps * warp_bytes<T, kChunks, kStages>() + sizeof(BlockEnd) + part;
}

// Multistage copies of one warp's pages of a split to shared memory; the split's `warps` take pages in turn, of which this
// is number `warp`.
template <typename T, int kChunks, bool kAligned, int kStages>
class PagePipeline {
 public:
  using Stage = PageStage<T, kChunks>;

  // Tokens [begin, end) of the split that begins at position `split_begin`. Looks its pages up, and
  // starts copies of those in the first stages that only earlier steps have written.
  __device__ __forceinline__ PagePipeline(const DecodeArgs<T>& args, int track, int kv_head,
                                          const Range& range, int split_begin, int begin, int end, int warp,
                                          int warps, T* memory)
      : args_(args),
        track_(track),
        kv_head_(kv_head),
        first_page_(begin / kPageSize + warp),
        warps_(warps),
        begin_(begin),
        end_(end),
        memory_(memory) {
    const int lane = lane_id(), page = page_number(lane);
    if (page * kPageSize < end_)
      page_of_lane_ = static_cast<int>(lookup_page(args.step, range.row, split_begin + page * kPageSize));
    const int first_new_page = (range.first_new - split_begin) / kPageSize;
    while (issued_ < kStages && page_number(issued_) < first_new_page) load_stage();
  }

  __device__ __forceinline__ void fill_stages() {
    while (issued_ < kStages) load_stage();
  }

  // Calls process(stage, begin, end) for the warp's pages in order; tokens [begin, end) of the page
  // count.
  template <class Process>
  __device__ __forceinline__ void for_each_page(const Process& process) {
    for (int i = 0; exists(i); ++i) {
      cp_async_wait<kStages - 1>();
      __syncwarp();
      const int first = page_number(i) * kPageSize;
      process(Stage{memory_ + i % kStages * Stage::kElements}, max(begin_ - first, 0),
              min(end_ - first, kPageSize));
      __syncwarp();
      load_stage();
    }
    cp_async_wait<0>();
    __syncwarp();
  }

 private:
  __device__ __forceinline__ int page_number(int i) const {
    return first_page_ + i * (kAligned ? warps_ : kWarps);
  }
  __device__ __forceinline__ bool exists(int i) const { return page_number(i) * kPageSize < end_; }

  __device__ __forceinline__ void load_stage() {
    if (exists(issued_)) {
      const int first = page_number(issued_) * kPageSize;
      const T* keys = args_.pool.keys(__shfl_sync(kAllLanes, page_of_lane_, issued_), track_, kv_head_);
      Stage{memory_ + issued_ % kStages * Stage::kElements}.template load<kAligned>(
          keys, keys + args_.pool.values_offset, max(begin_ - first, 0), min(end_ - first, kPageSize),
          args_.head_dim);
    }
    cp_async_commit();
    ++issued_;
  }

  const DecodeArgs<T>& args_;
  int track_, kv_head_, first_page_, warps_, begin_, end_, issued_ = 0, page_of_lane_ = 0;
  T* memory_;
};

// Combines the warps' results for one element of a head, and stores it.
template <typename T, int kPitch>
__device__ __forceinline__ void combine_warps(const DecodeArgs<T>& args, const unsigned char* memory,
                                              std::size_t bytes_of_warp, const float2* softmax_stats,
                                              int head, int element, T* out, float* partial) {
  float row_max = -INFINITY, row_sum = 0, sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) row_max = fmaxf(row_max, softmax_stats[warp * kHeads + head].x);
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    const float2 mine = softmax_stats[warp * kHeads + head];
    const float weight = weight_of(mine.x, row_max);
    row_sum += mine.y * weight;
    sum += reinterpret_cast<const float*>(memory + warp * bytes_of_warp)[head * kPitch + element] * weight;
  }
  if (partial == nullptr) {
    store(out + element, sum / row_sum);
    return;
  }
  partial[element] = sum;
  if (element == 0) partial[args.head_dim] = row_max, partial[args.head_dim + 1] = row_sum;
}

// Combines the parts of a cluster's blocks for one element of a head, and stores it. `part` [head_dim + 2] lies in each
// block's shared memory, laid out as in args.partial.
template <typename T>
__device__ __forceinline__ void combine_blocks(const DecodeArgs<T>& args, const float* part, int element,
                                               T* out, float* partial) {
  const float* parts[kMostBlocks];
  float maxima[kMostBlocks], row_max = -INFINITY, row_sum = 0, sum = 0;
#pragma unroll
  for (int b = 0; b < kMostBlocks; ++b) {
    parts[b] = in_block_of_cluster(part, b);
    maxima[b] = parts[b][args.head_dim];
    row_max = fmaxf(row_max, maxima[b]);
  }
#pragma unroll
  for (int b = 0; b < kMostBlocks; ++b) {
    const float weight = weight_of(maxima[b], row_max);
    row_sum += parts[b][args.head_dim + 1] * weight;
    sum += parts[b][element] * weight;
  }
  if (partial == nullptr) {
    store(out + element, sum / row_sum);
    return;
  }
  partial[element] = sum;
  if (element == 0) partial[args.head_dim] = row_max, partial[args.head_dim + 1] = row_sum;
}

// Combines the splits of one head, by one warp. Reads what other blocks have written from the L2
// cache.
template <typename T>
__device__ __forceinline__ void combine_splits(const DecodeArgs<T>& args, int item, int head, int splits,
                                               T* out) {
  constexpr int kPerLane = static_cast<int>(kMaxHeadDim) / kWarpSize;
  const int lane = lane_id(), head_dim = args.head_dim;
  const float* first = partial_of(args, item, head, 0);
  const std::int64_t pitch = head_dim + 2;
  float row_max = -INFINITY;
  for (int s = lane; s < splits; s += kWarpSize)
    row_max = fmaxf(row_max, __ldcg(first + s * pitch + head_dim));
  row_max = warp_max(row_max);
  float row_sum = 0, sum[kPerLane] = {};
  for (int begin = 0; begin < splits; begin += kWarpSize) {
    float weight = 0;  // of split begin + lane
    if (const float* mine = first + (begin + lane) * pitch + head_dim; begin + lane < splits) {
      weight = exp2f(__ldcg(mine) - row_max);
      row_sum += __ldcg(mine + 1) * weight;
    }
    const int count = min(splits - begin, kWarpSize);
#pragma unroll 8
    for (int s = 0; s < count; ++s) {
      const float* partial = first + (begin + s) * pitch;
      const float of_split = __shfl_sync(kAllLanes, weight, s);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i)
        if (lane + i * kWarpSize < head_dim) sum[i] += __ldcg(partial + lane + i * kWarpSize) * of_split;
    }
  }
  row_sum = warp_sum(row_sum);
#pragma unroll
  for (int i = 0; i < kPerLane; ++i)
    if (lane + i * kWarpSize < head_dim) store(out + lane + i * kWarpSize, sum[i] / row_sum);
}

// Grid: x over items (track, decode row), their splits, KV heads, and the cluster's blocks. The block, or the cluster,
// computes all query heads of its KV head, kHeads at a time; its warps take pages in turn. The block that finishes an
// item's last split combines the splits.
template <typename T, int kChunks, bool kAligned, int kStages>
__global__ void __launch_bounds__(kThreads, kChunks > 4 ? 1 : 2) decode_kernel(DecodeArgs<T> args) {
  trigger_dependent_launch();
  using Warp = WarpAttention<T, kChunks, kAligned>;
  constexpr std::size_t kWarpBytes = warp_bytes<T, kChunks, kStages>();
  const int cluster = kAligned ? args.cluster : 1;  // copies by element leave no registers for more
  const bool clustered = cluster > 1;
  const int rank = clustered ? cluster_rank() : 0, unit = static_cast<int>(blockIdx.x) / cluster;
  const int kv_head = unit % args.kv_heads;
  const int split_index = unit / args.kv_heads % args.splits;
  const int item = unit / args.kv_heads / args.splits;
  const int track = item / args.decode_rows;
  // No kernel writes the step's inputs, so they may be read before the wait.
  const Range range = range_of(args, item % args.decode_rows);
  const int first_split = range.first / args.split_tokens;
  const int split_begin = (first_split + split_index) * args.split_tokens;
  if (split_begin > range.last) {
    grid_dependency_wait();
    return;
  }

  const int begin = max(range.first - split_begin, 0);
  const int end = min(range.last + 1 - split_begin, args.split_tokens);
  const int warp = warp_id();
  auto* memory = static_cast<unsigned char*>(shared_memory());
  auto* mine = memory + warp * kWarpBytes;
  auto* end_of_block = reinterpret_cast<BlockEnd*>(memory + kWarps * kWarpBytes);
  auto* part = reinterpret_cast<float*>(end_of_block + 1);  // of a cluster: [kHeads][head_dim + 2]
  const int group = args.heads / args.kv_heads, head_dim = args.head_dim;
  const std::int64_t row_begin = static_cast<std::int64_t>(range.row) * args.heads * head_dim;
  for (int done = 0; done < group; done += kHeads) {
    PagePipeline<T, kChunks, kAligned, kStages> pipeline(args, track, kv_head, range, split_begin, begin, end,
                                                         rank * kWarps + warp, cluster * kWarps,
                                                         reinterpret_cast<T*>(mine));
    if (done == 0) grid_dependency_wait();
    pipeline.fill_stages();
    const int heads = min(kHeads, group - done), head = kv_head * group + done;
    Warp state(args.q + track * args.q_stride + row_begin + head * head_dim, heads, head_dim, args.scale);
    pipeline.for_each_page(
        [&](const PageStage<T, kChunks>& stage, int from, int to) { state.process_page(stage, from, to); });
    state.store_output(reinterpret_cast<float*>(mine), end_of_block->softmax_stats + warp * kHeads);
    __syncthreads();
    T* out = args.out + track * args.out_stride + row_begin + head * head_dim;
    const auto partial_of_head = [&](int h) {
      return args.partial == nullptr ? nullptr : partial_of(args, item, head + h, split_index);
    };
    for (int i = thread_id(); i < heads * head_dim; i += kThreads) {
      const int h = i / head_dim;
      combine_warps<T, Warp::kPitch>(args, memory, kWarpBytes, end_of_block->softmax_stats, h, i % head_dim,
                                     out + h * head_dim,
                                     clustered ? part + h * (head_dim + 2) : partial_of_head(h));
    }
    if (!clustered) {
      __syncthreads();
      continue;
    }
    cluster_barrier();
    for (int i = thread_id() + rank * kThreads; i < heads * head_dim; i += kThreads * kMostBlocks) {
      const int h = i / head_dim;
      combine_blocks(args, part + h * (head_dim + 2), i % head_dim, out + h * head_dim, partial_of_head(h));
    }
    cluster_barrier();  // before any block overwrites its part, or ends
  }
  if (args.partial == nullptr) return;

  const int splits = range.last / args.split_tokens - first_split + 1;
  if (threadIdx.x == 0) {
    __threadfence();  // after a barrier: publishes what the whole block wrote
    std::int32_t* splits_done = args.splits_done + item * args.kv_heads + kv_head;
    end_of_block->is_last = atomicAdd(splits_done, 1) == splits * cluster - 1;
    if (end_of_block->is_last) *splits_done = 0;
    __threadfence();
  }
  __syncthreads();
  if (!end_of_block->is_last) return;
  for (int h = warp; h < group; h += kWarps) {
    const int head = kv_head * group + h;
    combine_splits(args, item, head, splits,
                   args.out + track * args.out_stride + row_begin + head * head_dim);
  }
}

template <int kChunks, bool kAligned, int kStages, typename T>
void launch_stages(const DecodeArgs<T>& args, cudaStream_t stream) {
  const int blocks = args.tracks * args.decode_rows * args.splits * args.kv_heads * args.cluster;
  launch({"decode_attention", dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream,
          block_bytes<T, kChunks, kStages>(args.cluster, args.head_dim), static_cast<unsigned>(args.cluster)},
         decode_kernel<T, kChunks, kAligned, kStages>, args);
}

template <int kChunks, bool kAligned, typename T>
void launch_decode(const DecodeArgs<T>& args, cudaStream_t stream) {
  constexpr int kMaxStages = kChunks > 4 ? 2 : 3, kBlocks = kChunks > 4 ? 1 : 2;
  if (device_traits().blocks_per_multiprocessor(
          block_bytes<T, kChunks, kMaxStages>(args.cluster, args.head_dim)) >= kBlocks)
    launch_stages<kChunks, kAligned, kMaxStages>(args, stream);
  else
    launch_stages<kChunks, kAligned, kMaxStages - 1>(args, stream);
}

template <typename T>
void launch_kernel(const AttentionJob& job, const StepInput& step, const Splits& splits, float* partial,
                   std::int32_t* splits_done) {
  const AttentionShape& shape = job.shape;
  DecodeArgs<T> args{};
  args.q = static_cast<const T*>(job.q.data);
  args.out = static_cast<T*>(job.out.data);
  args.q_stride = job.q.track_stride;
  args.out_stride = job.out.track_stride;
  args.partial = splits.count > 1 ? partial : nullptr;
  args.splits_done = splits_done;
  args.decode_rows = static_cast<int>(step.decode_row_count());
  args.splits = static_cast<int>(splits.count);
  args.split_tokens = static_cast<int>(splits.tokens);
  args.cluster = static_cast<int>(splits.cluster);
  args.tracks = static_cast<int>(job.q.tracks);
  args.heads = static_cast<int>(shape.heads);
  args.kv_heads = static_cast<int>(shape.kv_heads);
  args.head_dim = static_cast<int>(shape.head_dim);
  args.window = static_cast<int>(shape.window);
  args.scale = kLog2E * shape.query_scale();
  args.step = step.view();
  args.pool = layer_pool<T>(job.pool, job.layer);
  if (!is_aligned(shape))
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
  const auto counters = static_cast<std::size_t>(limits.tracks * limits.decode_rows() * limits.heads);
  splits_done_ = allocate_device_array<std::int32_t>(counters, "the splits of decode attention");
  PTRT_CUDA_CHECK(cudaMemsetAsync(splits_done_.get(), 0, counters * sizeof(std::int32_t), stream.get()));
}

std::int64_t DecodeAttention::context_of(const StepInput& step) const {
  std::int64_t context = kMinSplitTokens;
  while (context < step.longest_decode_context()) context *= 2;
  return std::min(context, max_context_);
}

void DecodeAttention::run(const AttentionJob& job, const StepInput& step) const {
  if (step.decode_row_count() == 0) return;
  const bool has_clusters = device_traits().has_clusters && is_aligned(job.shape);
  const Splits splits = decode_splits(job.q.tracks * step.decode_row_count() * job.shape.kv_heads,
                                      context_of(step), job.shape.window, has_clusters);
  dispatch_dtype(job.q.dtype, [&]<typename T>(TypeTag<T>) {
    launch_kernel<T>(job, step, splits, partial_.get(), splits_done_.get());
  });
}

}  // namespace ptrt::cuda
