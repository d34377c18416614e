// Elementwise ops and the embedding lookup. The activation dtypes are bfloat16 and float16.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "kernels/jobs.h"
#include "kernels/step_rows.h"
#include "kernels/tensor.h"

namespace ptrt::cuda {

// The number of parts that one tree_sum() takes.
inline constexpr int kMaxTreeParts = 64;

void add(const Tensor& a, const Tensor& h,
         cudaStream_t stream);  // h += a; a: activation dtype or float32; h: float32
void subtract(const Tensor& x, const Tensor& y, cudaStream_t stream);  // y -= x; float32
void copy(const Tensor& x, const Tensor& out,
          cudaStream_t stream);  // out = x; x: float32; out: activation dtype or float32
void glu(FfnActivation activation, const Tensor& gate, const Tensor& up,
         cudaStream_t stream);  // gate = activation(gate) · up; activation dtype
// y += bias, a vector of float32 for each track; y: activation dtype or float32.
void add_bias(const TrackWeights& bias, const Tensor& y, cudaStream_t stream);
// out[0, i, :] = x[0, rows[i], :], float32. `rows` is passed in the kernel's arguments.
// OpSet::join_columns().
void join_columns(const float* parts, std::int64_t stride, std::int64_t width, const Tensor& out,
                  cudaStream_t stream);
void gather_rows(const Tensor& x, std::span<const std::int32_t> rows, const Tensor& out, cudaStream_t stream);
// out = (add_to ? add_to : 0) + scale · tree(parts), with the same bits as on the CPU. All
// pointers: device memory.
void tree_sum(std::span<const float* const> parts, std::int64_t count, float scale, const float* add_to,
              float* out, cudaStream_t stream);
// x[0, r, :] = scale · table[tokens[r], :]; the table has any floating-point dtype. A negative token is a
// token_of_sample(): it stands for the token in that row of `sampled`. tokens, sampled: device
// memory.
void embed(const Weight& table, const std::int32_t* tokens, const Sampled* sampled, float scale,
           const Tensor& x, cudaStream_t stream);

}  // namespace ptrt::cuda
