#include "kernels/cuda/attention.h"
#include "kernels/cuda/kv_page.cuh"
#include "kernels/cuda/reduce.cuh"

namespace ptrt::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kSplit = static_cast<int>(kSplitTokens);
constexpr int kSplitPages = kSplit / kTokensOfPage;
constexpr int kUnroll = 4;  // loads that a thread has under way
constexpr float kLog2E = 1.4426950408889634f;

struct DecodeArgs {
  const bf16* q;
  bf16* out;
  std::int64_t q_stride, out_stride;  // between tracks
  float* partial;                     // [tracks, single rows, heads, splits, head_dim + 2]; null: one split
  int singles, splits, tracks, heads, kv_heads, head_dim, window;
  float scale;  // 1 / sqrt(head_dim), for powers of two
  StepView step;
  LayerPool pool;
};

// Of one item (track and single row).
struct Range {
  int row, first, last;  // positions that the row sees
  __device__ __forceinline__ int first_split() const { return first / kSplit; }
};

__device__ __forceinline__ Range range_of(const DecodeArgs& args, int single) {
  Range range;
  range.row = args.step.single_rows[single];
  range.last = args.step.positions[range.row];
  range.first = args.window > 0 && range.last >= args.window ? range.last - args.window + 1 : 0;
  return range;
}

__device__ __forceinline__ float* partial_of(const DecodeArgs& args, int item, int head, int split) {
  const std::int64_t index = (static_cast<std::int64_t>(item) * args.heads + head) * args.splits + split;
  return args.partial + index * (args.head_dim + 2);
}

// Eight elements of a head's vector; the pool's vectors start at multiples of 16 bytes when head_dim is a
// multiple of 8.
__device__ __forceinline__ Bf16x8 load_part(const bf16* vector, int at, int head_dim) {
  return head_dim % 8 == 0 ? load8<true>(vector, at, head_dim) : load8<false>(vector, at, head_dim);
}

// The tokens of a split and how its threads divide them: kLanes neighbouring lanes share a token's vector,
// eight elements each; token slot s takes tokens s, s + slots, ….
template <int kLanes, int kHeads>
struct SplitWork {
  static constexpr int kSlots = kThreads / kLanes, kStep = kSlots * kUnroll;
  static_assert(kSplit % kStep == 0);
  const DecodeArgs& args;
  const std::int32_t* pages;       // shared memory: of the split
  int track, kv_head, begin, end;  // positions relative to the split's first

  __device__ __forceinline__ int part() const { return static_cast<int>(threadIdx.x) % kLanes * 8; }
  __device__ __forceinline__ int slot() const { return static_cast<int>(threadIdx.x) / kLanes; }
  __device__ __forceinline__ int first_base() const { return begin / kStep * kStep; }
  __device__ __forceinline__ const bf16* key(int token) const {
    return args.pool.keys(pages[token / kTokensOfPage], track, kv_head) +
           token % kTokensOfPage * args.head_dim;
  }
  __device__ __forceinline__ void load(int first, std::int64_t offset, Bf16x8 (&to)[kUnroll]) const {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int token = first + u * kSlots;
      const bool seen = token >= begin && token < end;
      to[u] = seen ? load_part(key(token) + offset, part(), args.head_dim) : zeros8();
    }
  }

  // scores[h][token] = q[h] · key(token), for powers of two.
  __device__ __forceinline__ void score(const bf16* q, int heads, float* scores) const {
    float query[kHeads][8];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      widen8(h < heads ? load_part(q + h * args.head_dim, part(), args.head_dim) : zeros8(), query[h]);
#pragma unroll
      for (int j = 0; j < 8; ++j) query[h][j] *= args.scale * kLog2E;
    }
    for (int base = first_base(); base < end; base += kStep) {
      Bf16x8 keys[kUnroll];
      load(base + slot(), 0, keys);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        float key_part[8];
        widen8(keys[u], key_part);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          float sum = 0;
#pragma unroll
          for (int j = 0; j < 8; ++j) sum += query[h][j] * key_part[j];
          sum = warp_sum<kLanes>(sum);
          if (part() == 0) scores[h * kSplit + base + slot() + u * kSlots] = sum;
        }
      }
    }
  }

  // Scores become weights e^(score − max); statistics[h] = max, sum. A warp a head.
  __device__ __forceinline__ void soften(int heads, float* scores, float2* statistics) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int h = static_cast<int>(threadIdx.x) / kWarp; h < heads; h += kWarps) {
      float* row = scores + h * kSplit;
      float largest = -INFINITY;
      for (int i = begin + lane; i < end; i += kWarp) largest = fmaxf(largest, row[i]);
      largest = warp_max(largest);
      float sum = 0;
      for (int i = begin + lane; i < end; i += kWarp) {
        row[i] = exp2f(row[i] - largest);
        sum += row[i];
      }
      sum = warp_sum(sum);
      if (lane == 0) statistics[h] = make_float2(largest, sum);
    }
  }

  // sums[warp][h][:] = Σ weight · value over the warp's tokens.
  __device__ __forceinline__ void mix(int heads, const float* scores, float* sums) const {
    float sum[kHeads][8] = {};
    for (int base = first_base(); base < end; base += kStep) {
      Bf16x8 values[kUnroll];
      load(base + slot(), args.pool.values_offset, values);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int token = base + slot() + u * kSlots;
        if (token < begin || token >= end) continue;  // there are no weights for them
        float value[8];
        widen8(values[u], value);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          const float weight = h < heads ? scores[h * kSplit + token] : 0.0f;
#pragma unroll
          for (int j = 0; j < 8; ++j) sum[h][j] += weight * value[j];
        }
      }
    }
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const bool first_slot = static_cast<int>(threadIdx.x) % kWarp < kLanes;
#pragma unroll
    for (int h = 0; h < kHeads; ++h)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float total = sum[h][j];
#pragma unroll
        for (int distance = kLanes; distance < kWarp; distance *= 2)
          total += __shfl_xor_sync(kAllLanes, total, distance);
        if (first_slot) sums[((warp * kHeads) + h) * kLanes * 8 + part() + j] = total;
      }
  }
};

template <int kLanes, int kHeads>
constexpr std::size_t decode_shared_bytes() {
  return sizeof(float) * (kHeads * kSplit + kWarps * kHeads * kLanes * 8);
}

// Grid: x over items (track, single row) and their splits, y over KV heads; the block takes all query heads
// of its KV head, kHeads at a time.
template <int kLanes, int kHeads>
__global__ void __launch_bounds__(kThreads) decode_kernel(DecodeArgs args) {
  __shared__ std::int32_t pages[kSplitPages];
  __shared__ float2 statistics[kHeads];
  const int item = static_cast<int>(blockIdx.x) / args.splits;
  const int split_index = static_cast<int>(blockIdx.x) % args.splits;
  const int track = item / args.singles, kv_head = static_cast<int>(blockIdx.y);
  const Range range = range_of(args, item % args.singles);
  const int split_begin = (range.first_split() + split_index) * kSplit;
  if (split_begin > range.last) return;

  const int begin = max(range.first - split_begin, 0), end = min(range.last + 1 - split_begin, kSplit);
  for (int i = static_cast<int>(threadIdx.x); i * kTokensOfPage < end; i += kThreads)
    pages[i] = static_cast<std::int32_t>(page_of(args.step, range.row, split_begin + i * kTokensOfPage));
  __syncthreads();

  auto* scores = static_cast<float*>(shared_memory());
  float* sums = scores + kHeads * kSplit;
  const SplitWork<kLanes, kHeads> work{args, pages, track, kv_head, begin, end};
  const int group = args.heads / args.kv_heads, head_dim = args.head_dim;
  const std::int64_t row_begin = static_cast<std::int64_t>(range.row) * args.heads * head_dim;
  for (int done = 0; done < group; done += kHeads) {
    const int heads = min(kHeads, group - done), head = kv_head * group + done;
    work.score(args.q + track * args.q_stride + row_begin + head * head_dim, heads, scores);
    __syncthreads();
    work.soften(heads, scores, statistics);
    __syncthreads();
    work.mix(heads, scores, sums);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < heads * head_dim; i += kThreads) {
      const int h = i / head_dim, j = i % head_dim;
      float sum = 0;
      for (int warp = 0; warp < kWarps; ++warp) sum += sums[(warp * kHeads + h) * kLanes * 8 + j];
      if (args.partial == nullptr) {
        store(args.out + track * args.out_stride + row_begin + (head + h) * head_dim + j,
              sum / statistics[h].y);
        continue;
      }
      float* partial = partial_of(args, item, head + h, split_index);
      partial[j] = sum;
      if (j == 0) partial[head_dim] = statistics[h].x, partial[head_dim + 1] = statistics[h].y;
    }
    __syncthreads();
  }
}

// One block an item and head.
__global__ void combine_splits_kernel(DecodeArgs args) {
  const int item = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int track = item / args.singles, head_dim = args.head_dim;
  const Range range = range_of(args, item % args.singles);
  const int splits = range.last / kSplit - range.first_split() + 1;
  float largest = -INFINITY;
  for (int s = 0; s < splits; ++s) largest = fmaxf(largest, partial_of(args, item, head, s)[head_dim]);
  float total = 0;
  for (int s = 0; s < splits; ++s) {
    const float* partial = partial_of(args, item, head, s);
    total += partial[head_dim + 1] * exp2f(partial[head_dim] - largest);
  }
  bf16* out = args.out + track * args.out_stride +
              (static_cast<std::int64_t>(range.row) * args.heads + head) * head_dim;
  for (int j = static_cast<int>(threadIdx.x); j < head_dim; j += static_cast<int>(blockDim.x)) {
    float sum = 0;
    for (int s = 0; s < splits; ++s) {
      const float* partial = partial_of(args, item, head, s);
      sum += partial[j] * exp2f(partial[head_dim] - largest);
    }
    store(out + j, sum / total);
  }
}

template <int kLanes, int kHeads>
void launch_decode(const DecodeArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.tracks * args.singles * args.splits),
                  static_cast<unsigned>(args.kv_heads));
  launch({"decode_attention", grid, dim3(kThreads), stream, decode_shared_bytes<kLanes, kHeads>()},
         decode_kernel<kLanes, kHeads>, args);
}

template <int kLanes>
void launch_for_group(const DecodeArgs& args, cudaStream_t stream) {
  const int group = args.heads / args.kv_heads;
  if (group == 1)
    launch_decode<kLanes, 1>(args, stream);
  else if (group <= 4)
    launch_decode<kLanes, 4>(args, stream);
  else
    launch_decode<kLanes, 8>(args, stream);
}

}  // namespace

DecodeAttention::DecodeAttention(const WorkLimits& limits)
    : max_splits_(ceil_div(limits.context, kSplitTokens)) {
  if (max_splits_ <= 1) return;
  partial_ =
      allocate_device_array<float>(static_cast<std::size_t>(limits.tracks * limits.sequences * limits.heads *
                                                            max_splits_ * (limits.head_dim + 2)),
                                   "the splits of decode attention");
}

std::int64_t DecodeAttention::splits_of(const StepInput& step) const {
  const std::int64_t needed = ceil_div(step.longest_context(), kSplitTokens);
  std::int64_t splits = 1;
  while (splits < needed) splits *= 2;
  return std::min(splits, max_splits_);
}

void DecodeAttention::run(const AttentionJob& job, const StepInput& step) const {
  if (step.single_count() == 0) return;
  const AttentionShape& shape = job.shape;
  std::int64_t splits = splits_of(step);
  if (shape.window > 0) splits = std::min(splits, shape.window / kSplitTokens + 2);
  DecodeArgs args{};
  args.q = static_cast<const bf16*>(job.q.data);
  args.out = static_cast<bf16*>(job.out.data);
  args.q_stride = job.q.track_stride;
  args.out_stride = job.out.track_stride;
  args.partial = splits > 1 ? partial_.get() : nullptr;
  args.singles = static_cast<int>(step.single_count());
  args.splits = static_cast<int>(splits);
  args.tracks = static_cast<int>(job.q.tracks);
  args.heads = static_cast<int>(shape.heads);
  args.kv_heads = static_cast<int>(shape.kv_heads);
  args.head_dim = static_cast<int>(shape.head_dim);
  args.window = static_cast<int>(shape.window);
  args.scale = 1.0f / sqrtf(static_cast<float>(shape.head_dim));
  args.step = step.view();
  args.pool = layer_pool(job.pool, job.layer);
  if (shape.head_dim <= 64)
    launch_for_group<8>(args, job.stream);
  else if (shape.head_dim <= 128)
    launch_for_group<16>(args, job.stream);
  else
    launch_for_group<32>(args, job.stream);
  if (splits > 1)
    launch({"combine_splits",
            dim3(static_cast<unsigned>(args.tracks * args.singles), static_cast<unsigned>(args.heads)),
            dim3(64), job.stream},
           combine_splits_kernel, args);
}

}  // namespace ptrt::cuda
