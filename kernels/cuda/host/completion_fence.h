#pragma once

#include <cuda_runtime_api.h>

namespace ptrt::cuda {

// Queues a kernel that ends after all work before it and triggers nothing early: for kernels of libraries, which may
// trigger early, before a collective (base/collective_memory.h).
void completion_fence(cudaStream_t stream);

}  // namespace ptrt::cuda
