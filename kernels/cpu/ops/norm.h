// RMSNorm.
#pragma once

#include "kernels/cpu/host/thread_pool.h"
#include "kernels/jobs.h"

namespace ptrt {

// out[t, r, :] = RMSNorm(x[t, r, :]; weights[t]), weights [width] in float32. x may show one matrix
// to every track; out may be x.
void rms_norm(ThreadPool& pool, const TrackWeights& weights, NormRule rule, Tensor x, Tensor out);

}  // namespace ptrt
