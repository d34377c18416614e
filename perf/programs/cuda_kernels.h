// Kernels of the GPU benchmark: what memory can do, and data that is not zeros.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace ptrt {

// bytes: a multiple of 16. Each thread moves 16 bytes at a time, four of them under way.
void copy_bytes(const void* from, void* to, std::size_t bytes, cudaStream_t stream);
void read_bytes(const void* from, std::size_t bytes, std::uint32_t* sink, cudaStream_t stream);

// Elements spread evenly over (-size, size), the same in every run.
void fill_inner_type(void* to, std::size_t count, float size, DType type, cudaStream_t stream);  // 16 bits
void fill_float32(void* to, std::size_t count, float size, cudaStream_t stream);

}  // namespace ptrt
