// A wait of a given time on the device; emulates a collective whose other ranks do not exist.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ptrt::cuda {

void timed_wait(std::int64_t nanoseconds, cudaStream_t stream);

}  // namespace ptrt::cuda
