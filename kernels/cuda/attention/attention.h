// Causal attention over the paged KV pool: one kernel for rows that stand alone (decoding), one for runs of
// rows of one sequence (prefill chunks over a cached past). q, pool and output of one inner type
// (numbers.cuh); head_dim up to 256.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/backend.h"
#include "kernels/cuda/host/device_memory.h"
#include "kernels/cuda/host/step_input.h"

namespace ptrt::cuda {

inline constexpr std::int64_t kMaxHeadDim = 256;

struct AttentionJob {
  AttentionShape shape;
  Tensor q, out;  // [tracks, rows, heads · head_dim]
  std::int64_t layer = 0;
  KvPool pool;
  cudaStream_t stream = nullptr;
};

// Decoding, in splits (scratch_size.h).
class DecodeAttention {
 public:
  DecodeAttention(const WorkLimits& limits, const Stream& stream);
  void run(const AttentionJob& job, const StepInput& step) const;
  // The context that launches count with: a power of two, or the longest there can be, so that steps whose
  // contexts differ little are launched alike. Blocks beyond a row's own splits end at once.
  std::int64_t context_of(const StepInput& step) const;

 private:
  std::int64_t max_context_;
  DevicePointer<float> partial_;  // of each track, single row, head and split: Σ p·v [head_dim], max, Σ p
  DevicePointer<std::int32_t> finished_;  // splits, of each track, single row and KV head
};

// Prefill on tensor cores: 128 query vectors a block (64 beyond a head_dim of 128), the heads of a KV head's
// group side by side.
void prefill_attention(const AttentionJob& job, const StepInput& step);

// The same by Hopper's warpgroup products, for the head sizes that it takes, on GPUs of compute
// capability 9.0.
bool wgmma_takes(const AttentionShape& shape);
void wgmma_prefill_attention(const AttentionJob& job, const StepInput& step);

}  // namespace ptrt::cuda
