// RoPE angles; QK-norm, RoPE and the append to the KV pool in one launch.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/host/step_input.h"
#include "kernels/jobs.h"
#include "kernels/kv_pool.h"

namespace ptrt::cuda {

// Backend::rope_angles() for positions in device memory; up to 128 frequencies.
void rope_angles(const std::int32_t* positions, const RopeFrequencies& rope, const Tensor& cos_sin,
                 cudaStream_t stream);

// Backend::rope_append() for q, k, v and pool of one activation dtype (dtypes.cuh); head_dim up to
// 256. k is not modified.
void rope_append(const AttentionShape& shape, const TrackWeights& q_norm, const TrackWeights& k_norm,
                 const Tensor& cos_sin, const Tensor& q, const Tensor& k, const Tensor& v,
                 const StepView& step, std::int64_t layer, const KvPool& pool, cudaStream_t stream);

}  // namespace ptrt::cuda
