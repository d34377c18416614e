// Rotary position encoding, QK-norm, and the append of keys and values to the KV pages.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/host/thread_pool.h"
#include "kernels/jobs.h"
#include "kernels/kv_pool.h"
#include "kernels/step_rows.h"

namespace ptrt {

// cos_sin[0, r, j] = magnitude · cos a and cos_sin[0, r, h + j] = magnitude · sin a with a =
// positions[r] · frequencies[j], h = head_dim / 2 = cos_sin.width / 2; computed in double, rounded
// to float32 at the end.
void rope_angles(ThreadPool& pool, std::span<const std::int32_t> positions, const RopeFrequencies& rope,
                 Tensor cos_sin);

// For every row, with q [tracks, rows, heads · head_dim] and k, v [tracks, rows, kv_heads ·
// head_dim]: each head of q and k is normed where the weights are given and rotated where
// shape.rope (half-split pairs, products and their difference rounded one by one), in place; then k
// and v are stored at the row's place in its page, rounded to nearest, ties to even, where the pool
// is bfloat16.
void rope_append(ThreadPool& pool, const AttentionShape& shape, const TrackWeights& q_norm,
                 const TrackWeights& k_norm, Tensor cos_sin, Tensor q, Tensor k, Tensor v,
                 const StepRows& rows, std::int64_t layer, const KvPool& kv);

}  // namespace ptrt
