// A wait on the device of a given time, in the place of a collective whose other ranks are not there.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ptrt::cuda {

void timed_wait(std::int64_t nanoseconds, cudaStream_t stream);

}  // namespace ptrt::cuda
