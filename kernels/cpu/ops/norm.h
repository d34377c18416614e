// RMSNorm.
#pragma once

#include "kernels/cpu/host/thread_pool.h"
#include "kernels/tensor.h"

namespace ptrt {

// out[t, r, :] = x[t, r, :] / sqrt(mean(x[t, r, :]²) + eps) · weights[t], weights [width] in
// float32. x may show one matrix to every track; out may be x.
void rms_norm(ThreadPool& pool, const TrackWeights& weights, float eps, Tensor x, Tensor out);

}  // namespace ptrt
