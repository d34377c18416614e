// Ops that take one element at a time, and the look-up of embeddings. The inner types are bfloat16 and
// float16.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "kernels/backend.h"

namespace ptrt::cuda {

// Parts of one tree_sum().
inline constexpr int kMaxTreeParts = 64;

void add(const Tensor& a, const Tensor& h, cudaStream_t stream);  // h += a; a inner or float32, h float32
void subtract(const Tensor& x, const Tensor& y, cudaStream_t stream);    // y -= x; float32
void copy(const Tensor& x, const Tensor& out, cudaStream_t stream);      // from float32 to float32 or inner
void swiglu(const Tensor& gate, const Tensor& up, cudaStream_t stream);  // gate = silu(gate) · up; inner
// out[0, i, :] = x[0, rows[i], :], float32. The rows travel with the launch.
void gather_rows(const Tensor& x, std::span<const std::int32_t> rows, const Tensor& out, cudaStream_t stream);
// out = (add_to ? add_to : 0) + scale · tree(parts), bit for bit as on the CPU; pointers to device memory.
void tree_sum(std::span<const float* const> parts, std::int64_t count, float scale, const float* add_to,
              float* out, cudaStream_t stream);
// x[0, r, :] = table[tokens[r], :]; the table of any floating type, `tokens` on the device. A token below
// zero is a token_of_sample(), whose row of `sampled` (on the device) has it.
void embed(const Weight& table, const std::int32_t* tokens, const Sampled* sampled, const Tensor& x,
           cudaStream_t stream);

}  // namespace ptrt::cuda
