// Rows of logits as the kernels of sampling.cu see them, and what a block does with one.
#pragma once

#include <cfloat>

#include "kernels/cuda/base/numbers.cuh"
#include "kernels/cuda/base/reduce.cuh"

// Tokens are ordered by their logit from the largest down, equal ones by id; an order is a 64-bit key.
// Cutting off at top_k or top_p and drawing are all one question: which token ends the shortest run from the
// first whose count, or probability mass, reaches a target? It is answered digit by digit of the key, with a
// histogram in shared memory. Masses are integers (units of 2^-40 of the largest), so that sums do not depend
// on the order of atomic additions.
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
  int bin, count;
};

struct Row {
  const float* logits;
  int vocab;
  int begin, end;   // the tokens that are looked at, by id or by place in the list
  const int* list;  // in any order; null: all ids
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
  __device__ __forceinline__ int id_at(int place) const { return list == nullptr ? place : list[place]; }
  __device__ __forceinline__ Key key_of(int id) const {
    return static_cast<Key>(order_of(logits[id])) << 32 | (0xFFFFFFFFu - static_cast<unsigned>(id));
  }
  // Bins of equal width in the logit's distance from the largest. Its bits would fall into few bins.
  __device__ __forceinline__ int distance_bin(float logit) const {
    constexpr float kBinsPerUnit = 64;
    if (logit == largest) return 0;
    const float distance = (largest - logit) * kBinsPerUnit;
    return distance < kBins - 2 ? 1 + static_cast<int>(distance) : kBins - 1;  // NaN: the last
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
  constexpr int kAhead = 8;  // loads on their way
  Key best = 0;
  for (int base = row.begin; base < row.end; base += kThreads * kAhead) {
    Key key[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int id = base + j * kThreads + static_cast<int>(threadIdx.x);
      key[j] = id < row.end ? row.key_of(id) : 0;
    }
#pragma unroll
    for (const Key one : key)
      if (one > best) best = one;
  }
  return block_reduce(best, shared.partial, [](Key a, Key b) { return a > b ? a : b; });
}

// Of the tokens whose key is at least `cut`.
__device__ __forceinline__ Mass total_mass(const Row& row, Key cut, Shared& shared) {
  Mass sum = 0;
  for (int place = row.begin + static_cast<int>(threadIdx.x); place < row.end; place += kThreads)
    if (const int id = row.id_at(place); row.key_of(id) >= cut) sum += row.mass_of(row.logits[id]);
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

__device__ __forceinline__ void clear_bins(Shared& shared) {
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) shared.bins[i] = 0;
  __syncthreads();
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
    clear_bins(shared);
    for (int base = row.begin; base < row.end; base += kThreads) {
      const int place = base + static_cast<int>(threadIdx.x);
      const int id = place < row.end ? row.id_at(place) : -1;
      const float logit = id >= 0 ? row.logits[id] : row.largest;
      const Key key = id >= 0 ? row.key_of(id) : 0;
      bool counts = id >= 0 && key >= cut && (key & mask) == value;
      const int distance = by_id ? -1 : row.distance_bin(logit);
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

// Lists the tokens of one bin of distance_bin(), in any order, as many as `ids` takes; returns how many there
// are.
__device__ int gather_bin(const Row& row, int bin, int* ids, int most, Shared& shared) {
  constexpr int kAhead = 8;  // loads on their way
  if (threadIdx.x == 0) shared.count = 0;
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int base = row.begin; base < row.end; base += kThreads * kAhead) {
    float logit[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      if (const int id = base + j * kThreads + static_cast<int>(threadIdx.x); id < row.end)
        logit[j] = row.logits[id];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int id = base + j * kThreads + static_cast<int>(threadIdx.x);
      const bool mine = id < row.end && row.distance_bin(logit[j]) == bin;
      const unsigned all = __ballot_sync(kAllLanes, mine ? 1 : 0);
      if (all == 0) continue;
      int place = lane == 0 ? atomicAdd(&shared.count, __popc(all)) : 0;
      place = __shfl_sync(kAllLanes, place, 0) + __popc(all & ((1u << lane) - 1));
      if (mine && place < most) ids[place] = id;
    }
  }
  __syncthreads();
  return shared.count;
}

}  // namespace
}  // namespace ptrt::cuda
