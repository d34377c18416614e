// How much device memory the CUDA backend's reserve() takes; for plans made before there is a device. Built
// without CUDA.
#pragma once

#include <cstddef>

#include "kernels/backend.h"

namespace ptrt {

// Bytes on the device, each piece rounded up as cudaMalloc may.
std::size_t cuda_scratch_bytes(const WorkLimits& limits);

}  // namespace ptrt
