#include <algorithm>
#include <cfloat>
#include <cstring>

#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/sampling.h"
#include "kernels/philox.h"

// What is known of a row as a whole (the largest logit, the sum of the exponentials, the probability mass) is
// found by several blocks, each over a part of the vocabulary; the row's own block puts the parts together in
// their order. Parts hang on the vocabulary alone, so that a row's results do not hang on the others.
//
// That block goes on with what is left. Tokens are ordered by their logit from the largest down, equal ones
// by id; an order is a 64-bit key. Cutting off at top_k or top_p and drawing are all one question: which
// token ends the shortest run from the first whose count, or probability mass, reaches a target? It is
// answered digit by digit of the key, with a histogram in shared memory. Masses are integers (units of 2^-40
// of the largest), so that sums do not depend on the order of atomic additions.
namespace ptrt::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kBits = 11;
constexpr int kBins = 1 << kBits;
constexpr float kUnits = 1099511627776.0f;  // 2^40: the mass of the largest logit

using Mass = unsigned long long;
using Key = unsigned long long;

struct Shared {
  Mass bins[kBins];
  Mass partial[kThreads / kWarp];
  float sums[kThreads / kWarp];
  Mass before;
  int bin;
};

struct Row {
  const float* logits;
  int vocab;
  int begin, end;  // the tokens that are looked at
  float largest;
  float inverse_temperature;

  // The order of floats as that of integers: NaN lowest, and -0 equal to +0.
  static __device__ __forceinline__ unsigned order_of(float x) {
    if (x != x) return 0;
    const unsigned bits = __float_as_uint(x + 0.0f);
    return bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFu : 0x80000000u);
  }
  static __device__ __forceinline__ int id_of(Key key) {
    return static_cast<int>(0xFFFFFFFFu - static_cast<unsigned>(key));
  }
  __device__ __forceinline__ Key key_of(int id) const {
    return static_cast<Key>(order_of(logits[id])) << 32 | (0xFFFFFFFFu - static_cast<unsigned>(id));
  }
  __device__ __forceinline__ Mass mass_of(float logit) const {
    if (logit == largest) return static_cast<Mass>(kUnits);
    const float weight = expf((logit - largest) * inverse_temperature);
    return weight > 0 ? static_cast<Mass>(weight * kUnits) : 0;
  }
};

template <typename T, class Combine>
__device__ __forceinline__ T block_reduce(T x, T* scratch, const Combine& combine) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    x = combine(x, __shfl_xor_sync(kAllLanes, x, distance));
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = scratch[0];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) x = combine(x, scratch[warp]);
  __syncthreads();
  return x;
}

__device__ __forceinline__ Key largest_key(const Row& row, Shared& shared) {
  Key best = 0;
  for (int id = row.begin + static_cast<int>(threadIdx.x); id < row.end; id += kThreads) {
    const Key key = row.key_of(id);
    if (key > best) best = key;
  }
  return block_reduce(best, shared.partial, [](Key a, Key b) { return a > b ? a : b; });
}

// Of the tokens whose key is at least `cut`.
__device__ __forceinline__ Mass total_mass(const Row& row, Key cut, Shared& shared) {
  Mass sum = 0;
  for (int id = row.begin + static_cast<int>(threadIdx.x); id < row.end; id += kThreads)
    if (row.key_of(id) >= cut) sum += row.mass_of(row.logits[id]);
  return block_reduce(sum, shared.partial, [](Mass a, Mass b) { return a + b; });
}

// Σ e^(logit − largest); nothing counts where the largest is -∞.
__device__ __forceinline__ float total_exp(const Row& row, Shared& shared) {
  float sum = 0;
  if (row.largest != -INFINITY)
    for (int id = row.begin + static_cast<int>(threadIdx.x); id < row.end; id += kThreads)
      sum += expf(row.logits[id] - row.largest);
  return block_reduce(sum, shared.sums, [](float a, float b) { return a + b; });
}

// The parts of all rows, and the logits.
struct Parts {
  const float* logits;  // [rows, vocab]
  VocabPart* of_rows;   // [rows, count]
  int vocab, count, tokens;

  __device__ __forceinline__ VocabPart* of(unsigned row) const {
    return of_rows + static_cast<std::int64_t>(row) * count;
  }
  __device__ __forceinline__ Row row(unsigned number) const {
    return {logits + static_cast<std::int64_t>(number) * vocab, vocab, 0, vocab, 0, 1};
  }
  __device__ __forceinline__ Row row_within(unsigned number, int part) const {
    Row row = this->row(number);
    row.begin = min(part * tokens, vocab);
    row.end = min(row.begin + tokens, vocab);
    return row;
  }
};

__device__ __forceinline__ float inverse_of(float temperature) {
  return fminf(1.0f / temperature, FLT_MAX);
}

__device__ __forceinline__ int largest_token(const VocabPart* parts, int count) {
  Key best = 0;
  for (int part = 0; part < count; ++part) best = max(best, parts[part].largest);
  return Row::id_of(best);
}

// Grid: x over parts, y over rows. Without `params` every row wants its sum.
__global__ void __launch_bounds__(kThreads) part_stats_kernel(Parts parts, const SampleParams* params) {
  __shared__ Shared shared;
  Row row = parts.row_within(blockIdx.y, static_cast<int>(blockIdx.x));
  VocabPart& mine = parts.of(blockIdx.y)[blockIdx.x];
  const Key largest = largest_key(row, shared);
  float sum = 0;
  if (params == nullptr || params[blockIdx.y].want_logprob) {
    row.largest = row.logits[Row::id_of(largest)];
    sum = total_exp(row, shared);
  }
  if (threadIdx.x == 0) mine.largest = largest, mine.sum = sum;
}

// The same grid, behind it: the masses of the rows that are drawn from.
__global__ void __launch_bounds__(kThreads) part_mass_kernel(Parts parts, const SampleParams* params) {
  __shared__ Shared shared;
  const SampleParams& mine = params[blockIdx.y];
  if (!(mine.temperature > 0)) return;
  Row row = parts.row_within(blockIdx.y, static_cast<int>(blockIdx.x));
  row.largest = row.logits[largest_token(parts.of(blockIdx.y), parts.count)];
  row.inverse_temperature = inverse_of(mine.temperature);
  const Mass mass = total_mass(row, 0, shared);
  if (threadIdx.x == 0) parts.of(blockIdx.y)[blockIdx.x].mass = mass;
}

__device__ __forceinline__ float log_prob(const Row& row, int token, const VocabPart* parts, int count) {
  float sum = 0;
  for (int part = 0; part < count; ++part)
    if (const float largest = row.logits[Row::id_of(parts[part].largest)]; largest != -INFINITY)
      sum += parts[part].sum * expf(largest - row.largest);
  return row.logits[token] - row.largest - logf(sum);
}

// Which bin holds the target, counted from bin 0, and what lies in the bins before it: shared.bin and
// shared.before. By the first warp, a lane taking neighbouring bins.
__device__ __forceinline__ void find_bin(Mass target, Shared& shared) {
  constexpr int kPerLane = kBins / kWarp;
  if (threadIdx.x < kWarp) {
    const int lane = static_cast<int>(threadIdx.x);
    Mass mine = 0;
    for (int i = 0; i < kPerLane; ++i) mine += shared.bins[lane * kPerLane + i];
    Mass up_to = mine;  // this lane's bins and all before
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const Mass other = __shfl_up_sync(kAllLanes, up_to, static_cast<unsigned>(distance));
      if (lane >= distance) up_to += other;
    }
    if (up_to >= target && up_to - mine < target) {
      Mass before = up_to - mine;
      int bin = lane * kPerLane;
      while (before + shared.bins[bin] < target) before += shared.bins[bin++];
      shared.bin = bin;
      shared.before = before;
    }
  }
  __syncthreads();
}

// Neighbouring ids often fall into one bin: then a warp adds once.
__device__ __forceinline__ void add_to_bin(int bin, Mass amount, Shared& shared) {
  const unsigned some = __ballot_sync(kAllLanes, amount > 0);
  if (some == 0) return;
  const int first = __shfl_sync(kAllLanes, bin, __ffs(static_cast<int>(some)) - 1);
  if (__all_sync(kAllLanes, amount == 0 || bin == first)) {
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      amount += __shfl_xor_sync(kAllLanes, amount, distance);
    if (threadIdx.x % kWarp == 0) atomicAdd(&shared.bins[first], amount);
  } else if (amount > 0) {
    atomicAdd(&shared.bins[bin], amount);
  }
}

// Levels of digits: 0 the distance from the largest logit, 1 to 3 the bits of the logit's order, from 4 on
// those of the id.
constexpr int kLevels = 7, kFirstIdLevel = 4;
__device__ __forceinline__ int shift_of(int level) {
  if (level == 0) return 0;
  if (level == 3) return 32;
  return level < 3 ? 64 - kBits * level : 22 - kBits * (level - kFirstIdLevel);
}

struct RunEnd {
  Key key;
  Mass up_to;  // count or mass of the run, its last token included
};

// Of the tokens looked at, the end of the shortest run whose count (kCount) or mass reaches `target`, which
// the tokens with a key of at least `cut` do together. by_id: the run goes by rising id, else by falling key.
template <bool kCount>
__device__ RunEnd end_of_run(const Row& row, Key cut, bool by_id, Mass target, Shared& shared) {
  // The first level cuts logits evenly by their distance from the largest: their bits would fall into few
  // bins.
  constexpr float kBinsPerUnit = 64;
  const auto distance_bin = [&](float logit) {
    if (logit == row.largest) return 0;
    const float distance = (row.largest - logit) * kBinsPerUnit;
    return distance < kBins - 2 ? 1 + static_cast<int>(distance) : kBins - 1;  // NaN: the last
  };
  Key mask = 0, value = 0;  // what is known of the key
  int first_bin = -1;
  Mass reached = 0, in_bin = 0;
  for (int level = by_id ? kFirstIdLevel : 0; level < kLevels; ++level) {
    const int shift = shift_of(level), width = level == 3 || level == 4 ? 10 : kBits;
    const Key digit = ((Key{1} << width) - 1) << shift;
    if (level >= kFirstIdLevel && (row.vocab - 1) >> shift == 0) {  // no id has a bit there
      mask |= digit;
      value |= digit;
      continue;
    }
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) shared.bins[i] = 0;
    __syncthreads();
    for (int base = row.begin; base < row.end; base += kThreads) {
      const int id = base + static_cast<int>(threadIdx.x);
      const float logit = id < row.end ? row.logits[id] : row.largest;
      const Key key = id < row.end ? row.key_of(id) : 0;
      bool counts = id < row.end && key >= cut && (key & mask) == value;
      const int distance = by_id ? -1 : distance_bin(logit);
      if (first_bin >= 0 && distance != first_bin) counts = false;
      // Bins in the order of the run: falling digits.
      const int bin = level == 0 ? distance : static_cast<int>((digit & ~key) >> shift);
      const Mass amount = kCount ? Mass{1} : row.mass_of(logit);
      add_to_bin(bin, counts ? amount : Mass{0}, shared);
    }
    __syncthreads();
    find_bin(target - reached, shared);
    reached += shared.before;
    in_bin = shared.bins[shared.bin];
    if (level == 0) {
      first_bin = shared.bin;
    } else {
      mask |= digit;
      value |= digit & ~(static_cast<Key>(shared.bin) << shift);
    }
    __syncthreads();
  }
  return {value, reached + in_bin};
}

// The `target`th unit of the mass of all tokens by rising id, within the part that has it.
__device__ __forceinline__ int draw_by_id(const Parts& parts, Row row, Mass target, Shared& shared) {
  const VocabPart* of_row = parts.of(blockIdx.x);
  int part = 0;
  while (target > of_row[part].mass) target -= of_row[part++].mass;
  row.begin = part * parts.tokens;
  row.end = min(row.begin + parts.tokens, row.vocab);
  return Row::id_of(end_of_run<false>(row, 0, true, target, shared).key);
}

__device__ __forceinline__ int draw(const Parts& parts, const Row& row, const SampleParams& params,
                                    Shared& shared) {
  const bool top_k = params.top_k > 0 && params.top_k < row.vocab, top_p = params.top_p < 1;
  Key cut = 0;
  Mass mass = 0;
  if (top_k) {
    cut = end_of_run<true>(row, 0, false, static_cast<Mass>(params.top_k), shared).key;
    mass = total_mass(row, cut, shared);
  } else {
    for (int part = 0; part < parts.count; ++part) mass += parts.of(blockIdx.x)[part].mass;
  }
  if (mass == 0) return 0;  // nothing but NaN
  if (top_p) {
    const double enough = ceil(static_cast<double>(params.top_p) * static_cast<double>(mass));
    const Mass target = min(max(enough > 0 ? static_cast<Mass>(enough) : Mass{1}, Mass{1}), mass);
    const RunEnd kept = end_of_run<false>(row, cut, false, target, shared);
    cut = kept.key;
    mass = kept.up_to;
  }
  const double u = uniform_draw(params.seed, params.position);
  const Mass target = min(static_cast<Mass>(u * static_cast<double>(mass)) + 1, mass);
  if (!top_k && !top_p) return draw_by_id(parts, row, target, shared);
  return Row::id_of(end_of_run<false>(row, cut, false, target, shared).key);
}

// One block a row, behind those of its parts.
__global__ void __launch_bounds__(kThreads)
    sample_kernel(Parts parts, const SampleParams* params, Sampled* out) {
  __shared__ Shared shared;
  const SampleParams& mine = params[blockIdx.x];
  const VocabPart* of_row = parts.of(blockIdx.x);
  Row row = parts.row(blockIdx.x);
  int token = largest_token(of_row, parts.count);
  row.largest = row.logits[token];
  if (mine.temperature > 0) {
    row.inverse_temperature = inverse_of(mine.temperature);
    token = draw(parts, row, mine, shared);
  }
  if (threadIdx.x != 0) return;
  out[blockIdx.x] = {token, mine.want_logprob ? log_prob(row, token, of_row, parts.count) : 0.0f};
}

// One thread a row.
__global__ void __launch_bounds__(kWarp)
    log_probs_kernel(Parts parts, int rows, const std::int32_t* targets, Sampled* out) {
  const unsigned number = blockIdx.x * kWarp + threadIdx.x;
  if (number >= static_cast<unsigned>(rows)) return;
  const VocabPart* of_row = parts.of(number);
  Row row = parts.row(number);
  row.largest = row.logits[largest_token(of_row, parts.count)];
  out[number] = {targets[number], log_prob(row, targets[number], of_row, parts.count)};
}

Parts parts_of(const Tensor& logits, VocabPart* memory) {
  const int vocab = static_cast<int>(logits.width);
  const int tokens = std::max(kVocabPartTokens, ceil_div(vocab, kMaxVocabParts));
  return {logits.row(0, 0), memory, vocab, ceil_div(vocab, tokens), tokens};
}

LaunchShape shape_of_parts(const char* kernel, const Parts& parts, std::size_t rows, const Stream& stream) {
  return {kernel, dim3(static_cast<unsigned>(parts.count), static_cast<unsigned>(rows)), dim3(kThreads),
          stream.get()};
}

}  // namespace

Sampler::Sampler(const WorkLimits& limits, const Stream& stream)
    : stream_(stream), max_rows_(limits.logit_rows) {
  constexpr const char* kWhat = "sampling";
  const auto rows = static_cast<std::size_t>(max_rows_);
  params_ = allocate_device_array<SampleParams>(rows, kWhat);
  targets_ = allocate_device_array<std::int32_t>(rows, kWhat);
  sampled_ = allocate_device_array<Sampled>(rows, kWhat);
  parts_ = allocate_device_array<VocabPart>(rows * kMaxVocabParts, kWhat);
  for (Turn& turn : turns_) {
    turn.in = allocate_pinned(rows * sizeof(SampleParams), kWhat);
    turn.out = allocate_pinned(rows * sizeof(Sampled), kWhat);
  }
}

template <typename T>
void Sampler::upload(std::span<const T> values, const Turn& turn, T* device) {
  auto* pinned = reinterpret_cast<T*>(turn.in.get());
  std::copy(values.begin(), values.end(), pinned);
  PTRT_CUDA_CHECK(
      cudaMemcpyAsync(device, pinned, values.size_bytes(), cudaMemcpyHostToDevice, stream_.get()));
}

void Sampler::download(std::size_t rows, Turn& turn) {
  PTRT_CUDA_CHECK(cudaMemcpyAsync(turn.out.get(), sampled_.get(), rows * sizeof(Sampled),
                                  cudaMemcpyDeviceToHost, stream_.get()));
  turn.done.record(stream_);
}

// What the device holds of the call before may still be in use, but in the same stream: this call's uploads
// and results come after.
void Sampler::queue(const Tensor& logits, std::span<const SampleParams> params) {
  Turn& mine = turn(queued_++);
  rows_ = static_cast<std::int64_t>(params.size());
  upload(params, mine, params_.get());
  const Parts parts = parts_of(logits, parts_.get());
  launch(shape_of_parts("vocabulary_parts", parts, params.size(), stream_), part_stats_kernel, parts,
         params_.get());
  if (std::ranges::any_of(params, [](const SampleParams& p) { return p.temperature > 0; }))
    launch(shape_of_parts("vocabulary_masses", parts, params.size(), stream_), part_mass_kernel, parts,
           params_.get());
  launch({"sample", dim3(static_cast<unsigned>(params.size())), dim3(kThreads), stream_.get()}, sample_kernel,
         parts, params_.get(), sampled_.get());
  download(params.size(), mine);
}

void Sampler::take(std::span<Sampled> out) {
  const Turn& oldest = turn(taken_++);
  oldest.done.wait();
  std::copy_n(reinterpret_cast<const Sampled*>(oldest.out.get()), out.size(), out.begin());
}

void Sampler::log_probs(const Tensor& logits, std::span<const std::int32_t> targets, std::span<float> out) {
  Turn& mine = turn(queued_);
  upload(targets, mine, targets_.get());
  const Parts parts = parts_of(logits, parts_.get());
  launch(shape_of_parts("vocabulary_parts", parts, targets.size(), stream_), part_stats_kernel, parts,
         nullptr);
  const int rows = static_cast<int>(targets.size());
  launch({"log_probs", dim3(static_cast<unsigned>(ceil_div(rows, kWarp))), dim3(kWarp), stream_.get()},
         log_probs_kernel, parts, rows, targets_.get(), sampled_.get());
  download(targets.size(), mine);
  mine.done.wait();
  const auto* results = reinterpret_cast<const Sampled*>(mine.out.get());
  for (std::size_t r = 0; r < out.size(); ++r) out[r] = results[r].logprob;
}

}  // namespace ptrt::cuda
