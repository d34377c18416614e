// Causal attention over the paged KV pool: one kernel for decode rows, one for prefill chunks over
// a cached past. q, pool and output have one activation dtype (dtypes.cuh); head_dim up to 256.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/host/device_memory.h"
#include "kernels/cuda/host/step_input.h"
#include "kernels/jobs.h"
#include "kernels/kv_pool.h"
#include "kernels/step_rows.h"

namespace ptrt::cuda {

inline constexpr std::int64_t kMaxHeadDim = 256;

struct AttentionJob {
  AttentionShape shape;
  Tensor q, out;  // [tracks, rows, heads · head_dim]
  std::int64_t layer = 0;
  KvPool pool;
  cudaStream_t stream = nullptr;
};

// The vectors of a head begin at multiples of 16 bytes.
inline bool is_aligned(const AttentionShape& shape) {
  return shape.head_dim % 8 == 0;
}

// Decode attention; a row's context is divided into splits (split-KV, scratch_size.h).
class DecodeAttention {
 public:
  DecodeAttention(const WorkLimits& limits, const Stream& stream);
  void run(const AttentionJob& job, const StepInput& step) const;
  // The context that launches are sized for: the next power of two, at most the longest possible
  // context, so that steps with similar contexts have equal launches. Blocks beyond a row's own
  // splits end at once.
  std::int64_t context_of(const StepInput& step) const;

 private:
  std::int64_t max_context_;
  DevicePointer<float> partial_;  // [tracks, decode rows, heads, splits, head_dim + 2]: Σ P·V, max, Σ P
  DevicePointer<std::int32_t> splits_done_;  // [tracks, decode rows, kv_heads]
};

// Prefill attention with mma.sync: 128 queries per block (64 for a head_dim above 128), the query
// heads of a KV head contiguous.
void prefill_attention(const AttentionJob& job, const StepInput& step);

// The same with wgmma, for the head sizes that it supports, on GPUs of compute capability 9.0.
bool wgmma_supports(const AttentionShape& shape);
void wgmma_prefill_attention(const AttentionJob& job, const StepInput& step);

}  // namespace ptrt::cuda
