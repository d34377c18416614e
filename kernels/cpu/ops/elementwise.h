// Ops without a reduction over a row, and the tree sum of the fusion. Element by element the same
// arithmetic wherever the element lies.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/host/thread_pool.h"
#include "kernels/jobs.h"

namespace ptrt {

// h += a; a may have one track (or a track_stride of 0) that all of h's tracks see.
void add(ThreadPool& pool, Tensor a, Tensor h);
// y -= x; x as `a` above.
void subtract(ThreadPool& pool, Tensor x, Tensor y);
// out = x; x as `a` above.
void copy(ThreadPool& pool, Tensor x, Tensor out);
// gate = activation(gate) · up.
void glu(ThreadPool& pool, FfnActivation activation, Tensor gate, Tensor up);
// y += bias, for the jobs that have one.
void add_bias(ThreadPool& pool, std::span<const LinearJob> jobs);
// x[0, r, :] = scale · table[tokens[r], :], widened.
void embed(ThreadPool& pool, const Weight& table, std::span<const std::int32_t> tokens, float scale,
           Tensor x);

// out[i] = scale · tree(parts[0][i], …, parts[n-1][i]), after it add_to[i] where add_to is not
// null. The tree adds the tree of its left part, the largest power of two below the count, to that
// of the rest. out may be one of the parts.
void tree_sum(ThreadPool& pool, std::span<const float* const> parts, std::int64_t count, float scale,
              const float* add_to, float* out);

}  // namespace ptrt
