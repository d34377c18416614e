// A row of logits in the kernels of sampling.cu, and the block-wide operations on it.
#pragma once

#include <cfloat>

#include "kernels/cuda/base/dtypes.cuh"
#include "kernels/cuda/base/reduce.cuh"

// Tokens are sorted by descending logit, equal ones by id; a 64-bit key encodes this order. Logits
// that are not finite have the largest keys: a row whose first token has one gives no token. top_k,
// top_p and the draw all ask the same question: which token ends the shortest run from the first
// token whose count, or probability mass, reaches a target? The answer is a radix select over the
// digits of the key, with a histogram in shared memory. Masses are integers (units of 2^-40 of the
// largest probability), so that sums do not depend on the order of atomic additions.
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
  Mass partial[kThreads / kWarpSize];
  float sums[kThreads / kWarpSize];
  Mass before;
  int bin, count;
};

struct Row {
  const float* logits;
  int vocab;
  int begin, end;   // the tokens to process: ids, or indices into `list`
  const int* list;  // ids in any order; null: all ids
  float max_logit;
  float inverse_temperature;
  float least;  // smaller logits are not finite: -FLT_MAX, or -infinity where that stands for "never"

  static constexpr unsigned kNotFinite = 0xFFFFFFFFu;  // above every finite logit

  // Maps logits from `least` on to integers of the same order, with -0 equal to +0.
  __device__ __forceinline__ unsigned order_of(float x) const {
    if (!(x <= FLT_MAX && x >= least)) return kNotFinite;
    const unsigned bits = __float_as_uint(x + 0.0f);
    return bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFu : 0x80000000u);
  }
  static __device__ __forceinline__ bool is_finite(Key key) { return key >> 32 != kNotFinite; }
  static __device__ __forceinline__ int id_of(Key key) {
    return static_cast<int>(0xFFFFFFFFu - static_cast<unsigned>(key));
  }
  __device__ __forceinline__ int id_at(int index) const { return list == nullptr ? index : list[index]; }
  __device__ __forceinline__ Key key_of(int id) const {
    return static_cast<Key>(order_of(logits[id])) << 32 | (0xFFFFFFFFu - static_cast<unsigned>(id));
  }
  // Of this logit and all larger ones: at most the keys.
  __device__ __forceinline__ Key least_key(float logit) const {
    return static_cast<Key>(order_of(logit)) << 32;
  }
  // Bins of equal width by distance from the largest logit. The bits of the logits would fall into
  // few bins.
  __device__ __forceinline__ int distance_bin(float logit) const {
    constexpr float kBinsPerUnit = 64;
    if (logit == max_logit) return 0;
    const float distance = (max_logit - logit) * kBinsPerUnit;
    return distance < kBins - 2 ? 1 + static_cast<int>(distance) : kBins - 1;
  }
  __device__ __forceinline__ Mass mass_of(float logit) const {
    if (logit == max_logit) return static_cast<Mass>(kUnits);
    const float weight = expf((logit - max_logit) * inverse_temperature);
    return weight > 0 ? static_cast<Mass>(weight * kUnits) : 0;
  }
};

// Over the block; scratch may be reused at once.
template <typename T, class Combine>
__device__ __forceinline__ T reduce(T x, T* scratch, const Combine& combine) {
  x = block_reduce(x, scratch, kThreads / kWarpSize, combine);
  __syncthreads();
  return x;
}

__device__ __forceinline__ Key argmax_key(const Row& row, Shared& shared) {
  constexpr int kUnroll = 8;  // loads in flight
  Key best = 0;
  for (int base = row.begin; base < row.end; base += kThreads * kUnroll) {
    Key key[kUnroll];
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) {
      const int id = base + j * kThreads + thread_id();
      key[j] = id < row.end ? row.key_of(id) : 0;
    }
#pragma unroll
    for (const Key one : key)
      if (one > best) best = one;
  }
  return reduce(best, shared.partial, Max{});
}

// Σ mass of the tokens whose key is at least `cut`.
__device__ __forceinline__ Mass sum_mass(const Row& row, Key cut, Shared& shared) {
  Mass sum = 0;
  for (int index = row.begin + thread_id(); index < row.end; index += kThreads)
    if (const int id = row.id_at(index); row.key_of(id) >= cut) sum += row.mass_of(row.logits[id]);
  return reduce(sum, shared.partial, Sum{});
}

// Σ e^(logit − max_logit)
__device__ __forceinline__ float sum_exp(const Row& row, Shared& shared) {
  float sum = 0;
  for (int id = row.begin + thread_id(); id < row.end; id += kThreads)
    sum += expf(row.logits[id] - row.max_logit);
  return reduce(sum, shared.sums, Sum{});
}

__device__ __forceinline__ void clear_bins(Shared& shared) {
  for (int i = thread_id(); i < kBins; i += kThreads) shared.bins[i] = 0;
  __syncthreads();
}

// Finds the bin in which the sum from bin 0 reaches `target`, and the sum of the bins before it:
// shared.bin and shared.before. By the first warp; a lane has neighbouring bins.
__device__ __forceinline__ void find_bin(Mass target, Shared& shared) {
  constexpr int kPerLane = kBins / kWarpSize;
  if (threadIdx.x < kWarpSize) {
    const int lane = thread_id();
    Mass mine = 0;
    for (int i = 0; i < kPerLane; ++i) mine += shared.bins[lane * kPerLane + i];
    Mass up_to = mine;  // inclusive scan over lanes
#pragma unroll
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
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

// Aggregates the additions of a warp if all of its lanes have the same bin, as neighbouring ids
// often do.
__device__ __forceinline__ void add_to_bin(int bin, Mass amount, Shared& shared) {
  const unsigned some = __ballot_sync(kAllLanes, amount > 0);
  if (some == 0) return;
  const int first = __shfl_sync(kAllLanes, bin, __ffs(static_cast<int>(some)) - 1);
  if (__all_sync(kAllLanes, amount == 0 || bin == first)) {
    amount = warp_sum(amount);
    if (threadIdx.x % kWarpSize == 0) atomicAdd(&shared.bins[first], amount);
  } else if (amount > 0) {
    atomicAdd(&shared.bins[bin], amount);
  }
}

// Levels of the radix select: 0 the distance from the largest logit, 1 to 3 the digits of the
// logit's order, 4 and up those of the id.
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

// The end of the shortest run of the row's tokens with key >= `cut` whose count (kCount) or mass
// reaches `target`; all of them together reach it. by_id: the run is in ascending id order, else in
// descending key order.
template <bool kCount>
__device__ RunEnd end_of_run(const Row& row, Key cut, bool by_id, Mass target, Shared& shared) {
  Key mask = 0, value = 0;  // the known digits of the key
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
    clear_bins(shared);
    for (int base = row.begin; base < row.end; base += kThreads) {
      const int index = base + thread_id();
      const int id = index < row.end ? row.id_at(index) : -1;
      const float logit = id >= 0 ? row.logits[id] : row.max_logit;
      const Key key = id >= 0 ? row.key_of(id) : 0;
      bool counts = id >= 0 && key >= cut && (key & mask) == value;
      const int distance = by_id ? -1 : row.distance_bin(logit);
      if (first_bin >= 0 && distance != first_bin) counts = false;
      // Bins in the order of the run: descending digits.
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

}  // namespace
}  // namespace ptrt::cuda
