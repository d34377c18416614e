#include "kernels/cuda/attention.h"
#include "kernels/cuda/kv_page.cuh"
#include "kernels/cuda/matmul_tile.cuh"

namespace ptrt::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kSplit = static_cast<int>(kSplitTokens);
static_assert(kSplit <= kWarp * kTokensOfPage, "a lane looks up one page");
static_assert(kTokensOfPage == 16, "rows of the tensor-core product");
constexpr int kHeads = 8;  // its columns
constexpr float kLog2E = 1.4426950408889634f;

template <typename T>
struct DecodeArgs {
  const T* q;
  T* out;
  std::int64_t q_stride, out_stride;  // between tracks
  float* partial;                     // [tracks, single rows, heads, splits, head_dim + 2]; null: one split
  int singles, splits, tracks, heads, kv_heads, head_dim, window;
  float scale;  // log2(e) / sqrt(head_dim): scores for powers of two
  StepView step;
  LayerPool<T> pool;
};

// Of one item (track and single row).
struct Range {
  int row, first, last;  // positions that the row sees
  __device__ __forceinline__ int first_split() const { return first / kSplit; }
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

// A warp's share of a split, for up to kHeads query heads of one KV head: it takes a page of keys and values
// at a time, straight from memory into tensor-core fragments, with a running softmax.
//
// Scores are keys (16 tokens) times queries (8 heads), as in matmul_tile.cuh; a lane then has, of heads 2 ·
// quad and 2 · quad + 1, the tokens `group` and `group` + 8. Sums are values (16 elements of 16 tokens) times
// weights (16 tokens of 8 heads): of each token a lane loads elements 64 · half + 8 · group … + 7, and the
// j-th product of a half has elements 2 · j and 2 · j + 1 of each eight as its rows `group` and `group` + 8.
template <typename T, int kChunks, bool kWhole>
class WarpAttention {
 public:
  static constexpr int kHalves = (kChunks + 1) / 2, kPitch = 64 * kHalves;

  __device__ __forceinline__ WarpAttention(const T* q, int heads, int head_dim, float scale)
      : head_dim_(head_dim), scale_(scale) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
      q_[c] =
          group() < heads ? load8<kWhole>(q + group() * head_dim, c * 32 + quad() * 8, head_dim) : zeros8();
  }

  // Tokens [begin, end) of a page, at least one.
  __device__ __forceinline__ void take_page(const T* keys, const T* values, int begin, int end) {
    Eight value[kHalves][4];
    float s[4] = {};
    if constexpr (kChunks > 4) {  // not all at once: registers
      score(keys, begin, end, s);
      load_values(values, begin, end, value);
    } else {
      Eight upper[kChunks], lower[kChunks];
#pragma unroll
      for (int c = 0; c < kChunks; ++c) load_keys(keys, c, begin, end, upper[c], lower[c]);
      load_values(values, begin, end, value);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) multiply<T>(upper[c], lower[c], q_[c], s);
    }
    soften(begin, end, s);
    mix(value, s);
  }

  // sums [kHeads][kPitch], and of each head the largest score and Σ p.
  __device__ __forceinline__ void save(float* sums, float2* statistics) {
    float* mine = sums + 2 * quad() * kPitch + 8 * group();
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float(&d)[4] = sum_[half][j];
        *reinterpret_cast<float2*>(mine + 64 * half + 2 * j) = make_float2(d[0], d[2]);
        *reinterpret_cast<float2*>(mine + kPitch + 64 * half + 2 * j) = make_float2(d[1], d[3]);
      }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float total = over_groups(total_[h], [](float a, float b) { return a + b; });
      if (group() == 0) statistics[2 * quad() + h] = make_float2(largest_[h], total);
    }
  }

 private:
  static __device__ __forceinline__ int lane() {
    return static_cast<int>(threadIdx.x) % kWarp;
  }
  static __device__ __forceinline__ int group() {
    return lane() / 4;
  }
  static __device__ __forceinline__ int quad() {
    return lane() % 4;
  }
  static __device__ __forceinline__ std::uint32_t low_halves(std::uint32_t a, std::uint32_t b) {
    return (a & 0xFFFFu) | b << 16;
  }
  static __device__ __forceinline__ std::uint32_t high_halves(std::uint32_t a, std::uint32_t b) {
    return a >> 16 | (b & 0xFFFF0000u);
  }
  template <class Combine>
  static __device__ __forceinline__ float over_groups(float x, const Combine& combine) {
#pragma unroll
    for (int distance = 4; distance < kWarp; distance *= 2)
      x = combine(x, __shfl_xor_sync(kAllLanes, x, distance));
    return x;
  }

  __device__ __forceinline__ Eight load_part(const T* page, int token, int at, int begin, int end) const {
    return token >= begin && token < end ? load8<kWhole>(page + token * head_dim_, at, head_dim_) : zeros8();
  }
  __device__ __forceinline__ void load_keys(const T* keys, int chunk, int begin, int end, Eight& upper,
                                            Eight& lower) const {
    upper = load_part(keys, group(), chunk * 32 + quad() * 8, begin, end);
    lower = load_part(keys, group() + 8, chunk * 32 + quad() * 8, begin, end);
  }
  __device__ __forceinline__ void score(const T* keys, int begin, int end, float (&s)[4]) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      Eight upper, lower;
      load_keys(keys, c, begin, end, upper, lower);
      multiply<T>(upper, lower, q_[c], s);
    }
  }
  // Of tokens 2 · quad, 2 · quad + 1 and the same + 8.
  __device__ __forceinline__ void load_values(const T* values, int begin, int end,
                                              Eight (&to)[kHalves][4]) const {
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        to[half][i] = load_part(values, 2 * quad() + i % 2 + i / 2 * 8, 64 * half + 8 * group(), begin, end);
  }

  // Scores become weights e^(score − largest); earlier sums are brought to the new maximum.
  __device__ __forceinline__ void soften(int begin, int end, float (&s)[4]) {
    const bool first = group() >= begin && group() < end, second = group() + 8 >= begin && group() + 8 < end;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      s[h] = first ? s[h] * scale_ : -INFINITY;
      s[2 + h] = second ? s[2 + h] * scale_ : -INFINITY;
      const float seen = over_groups(fmaxf(s[h], s[2 + h]), [](float a, float b) { return fmaxf(a, b); });
      const float largest = fmaxf(largest_[h], seen);
      const float shrink = exp2f(largest_[h] - largest);
      largest_[h] = largest;
      s[h] = exp2f(s[h] - largest);
      s[2 + h] = exp2f(s[2 + h] - largest);
      total_[h] = total_[h] * shrink + (s[h] + s[2 + h]);
#pragma unroll
      for (auto& half : sum_)
#pragma unroll
        for (auto& d : half) d[h] *= shrink, d[2 + h] *= shrink;
    }
  }

  __device__ __forceinline__ void mix(const Eight (&value)[kHalves][4], const float (&weight)[4]) {
    // As the product's right factor a lane has tokens 2 · quad, 2 · quad + 1 and the same + 8 of head
    // `group`.
    const int from = 8 * quad() + group() / 2;
    std::uint32_t b[2];
#pragma unroll
    for (int eight = 0; eight < 2; ++eight) {
      const std::uint32_t mine = pack<T>(weight[2 * eight], weight[2 * eight + 1]);
      const std::uint32_t even = __shfl_sync(kAllLanes, mine, from),
                          odd = __shfl_sync(kAllLanes, mine, from + 4);
      b[eight] = group() % 2 == 0 ? low_halves(even, odd) : high_halves(even, odd);
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const Eight(&v)[4] = value[half];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        mma_16x8x16<T>(sum_[half][j],
                       {low_halves(v[0].pair[j], v[1].pair[j]), high_halves(v[0].pair[j], v[1].pair[j]),
                        low_halves(v[2].pair[j], v[3].pair[j]), high_halves(v[2].pair[j], v[3].pair[j])},
                       {b[0], b[1]});
    }
  }

  int head_dim_;
  float scale_;  // log2(e) / sqrt(head_dim): scores for powers of two
  Eight q_[kChunks];
  float largest_[2] = {-INFINITY, -INFINITY}, total_[2] = {0, 0};  // total_: of this lane's tokens
  float sum_[kHalves][4][4] = {};
};

template <typename T, int kChunks, bool kWhole>
constexpr std::size_t decode_shared_bytes() {
  return sizeof(float) * kWarps * kHeads * WarpAttention<T, kChunks, kWhole>::kPitch;
}

// Adds what the warps have of one element of a head, and stores it.
template <typename T>
__device__ __forceinline__ void finish(const DecodeArgs<T>& args, const float* sums, int pitch,
                                       const float2* statistics, int head, int element, T* out,
                                       float* partial) {
  float largest = -INFINITY, total = 0, sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) largest = fmaxf(largest, statistics[warp * kHeads + head].x);
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    const float2 mine = statistics[warp * kHeads + head];
    const float weight = exp2f(mine.x - largest);
    total += mine.y * weight;
    sum += sums[(warp * kHeads + head) * pitch + element] * weight;
  }
  if (partial == nullptr) {
    store(out + element, sum / total);
    return;
  }
  partial[element] = sum;
  if (element == 0) partial[args.head_dim] = largest, partial[args.head_dim + 1] = total;
}

// Grid: x over items (track, single row) and their splits, y over KV heads; the block takes all query heads
// of its KV head, kHeads at a time; its warps take pages in turn.
template <typename T, int kChunks, bool kWhole>
__global__ void __launch_bounds__(kThreads, kChunks > 4 ? 2 : 3) decode_kernel(DecodeArgs<T> args) {
  begin_kernel();
  using Warp = WarpAttention<T, kChunks, kWhole>;
  __shared__ float2 statistics[kWarps * kHeads];
  const int item = static_cast<int>(blockIdx.x) / args.splits;
  const int split_index = static_cast<int>(blockIdx.x) % args.splits;
  const int track = item / args.singles, kv_head = static_cast<int>(blockIdx.y);
  const Range range = range_of(args, item % args.singles);
  const int split_begin = (range.first_split() + split_index) * kSplit;
  if (split_begin > range.last) return;

  const int begin = max(range.first - split_begin, 0), end = min(range.last + 1 - split_begin, kSplit);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  int page_of_lane = 0;
  if (lane * kTokensOfPage < end)
    page_of_lane = static_cast<int>(page_of(args.step, range.row, split_begin + lane * kTokensOfPage));

  auto* sums = static_cast<float*>(shared_memory());
  const int group = args.heads / args.kv_heads, head_dim = args.head_dim;
  const std::int64_t row_begin = static_cast<std::int64_t>(range.row) * args.heads * head_dim;
  for (int done = 0; done < group; done += kHeads) {
    const int heads = min(kHeads, group - done), head = kv_head * group + done;
    Warp mine(args.q + track * args.q_stride + row_begin + head * head_dim, heads, head_dim, args.scale);
    for (int page = begin / kTokensOfPage + warp; page * kTokensOfPage < end; page += kWarps) {
      const T* keys = args.pool.keys(__shfl_sync(kAllLanes, page_of_lane, page), track, kv_head);
      const int first = page * kTokensOfPage;
      mine.take_page(keys, keys + args.pool.values_offset, max(begin - first, 0),
                     min(end - first, kTokensOfPage));
    }
    mine.save(sums + warp * kHeads * Warp::kPitch, statistics + warp * kHeads);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < heads * head_dim; i += kThreads) {
      const int h = i / head_dim;
      finish(args, sums, Warp::kPitch, statistics, h, i % head_dim,
             args.out + track * args.out_stride + row_begin + (head + h) * head_dim,
             args.partial == nullptr ? nullptr : partial_of(args, item, head + h, split_index));
    }
    __syncthreads();
  }
}

// One block an item and head.
template <typename T>
__global__ void combine_splits_kernel(DecodeArgs<T> args) {
  begin_kernel();
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
  T* out = args.out + track * args.out_stride +
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

template <int kChunks, bool kWhole, typename T>
void launch_decode(const DecodeArgs<T>& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.tracks * args.singles * args.splits),
                  static_cast<unsigned>(args.kv_heads));
  launch({"decode_attention", grid, dim3(kThreads), stream, decode_shared_bytes<T, kChunks, kWhole>()},
         decode_kernel<T, kChunks, kWhole>, args);
}

template <typename T>
void launch_kernels(const AttentionJob& job, const StepInput& step, std::int64_t splits, float* partial) {
  const AttentionShape& shape = job.shape;
  DecodeArgs<T> args{};
  args.q = static_cast<const T*>(job.q.data);
  args.out = static_cast<T*>(job.out.data);
  args.q_stride = job.q.track_stride;
  args.out_stride = job.out.track_stride;
  args.partial = splits > 1 ? partial : nullptr;
  args.singles = static_cast<int>(step.single_count());
  args.splits = static_cast<int>(splits);
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
  if (splits > 1)
    launch({"combine_splits",
            dim3(static_cast<unsigned>(args.tracks * args.singles), static_cast<unsigned>(args.heads)),
            dim3(64), job.stream},
           combine_splits_kernel<T>, args);
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
  std::int64_t splits = splits_of(step);
  if (job.shape.window > 0) splits = std::min(splits, job.shape.window / kSplitTokens + 2);
  with_element(job.q.dtype,
               [&]<typename T>(Element<T>) { launch_kernels<T>(job, step, splits, partial_.get()); });
}

}  // namespace ptrt::cuda
