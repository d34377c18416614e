// Kernels of the GPU benchmark: memory ceilings, and data other than zeros.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace ptrt {

// bytes: a multiple of 16. Each thread moves 16 bytes at a time, with four loads in flight.
void copy_bytes(const void* from, void* to, std::size_t bytes, cudaStream_t stream);
void read_bytes(const void* from, std::size_t bytes, std::uint32_t* sink, cudaStream_t stream);

// Elements uniform in (-size, size), the same in every run. fill_16bit(): bfloat16 or float16.
void fill_16bit(void* to, std::size_t count, float size, DType type, cudaStream_t stream);
void fill_float32(void* to, std::size_t count, float size, cudaStream_t stream);

}  // namespace ptrt
