#include "kernels/cpu/ops/elementwise.h"

#include <algorithm>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ops/elementwise.cpp"
#include "hwy/foreach_target.h"
// foreach_target comes first
#include "kernels/cpu/simd/simd-inl.h"

#ifndef PTRT_KERNELS_CPU_ELEMENTWISE_ONCE_
#define PTRT_KERNELS_CPU_ELEMENTWISE_ONCE_
namespace ptrt {

inline constexpr std::int64_t kTreeChunk = 128;  // elements summed at a time by tree_sum
inline constexpr int kTreeLevels = 32;           // up to 2^31 parts

struct TreeSum {
  std::span<const float* const> parts;
  float scale;
  const float* add_to;
  float* out;
};

}  // namespace ptrt
#endif

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace {

// out[i] = op(a[i], b[i]); out may be a or b.
template <class Op>
HWY_INLINE void combine(const float* a, const float* b, std::int64_t n, float* out, const Op& op) {
  const std::int64_t whole = whole_vectors(n);
  for (std::int64_t i = 0; i < whole; i += kLanes)
    hn::StoreU(op(hn::LoadU(kFloats, a + i), hn::LoadU(kFloats, b + i)), kFloats, out + i);
  if (whole < n) {
    const std::int64_t left = n - whole;
    store_part(op(load_part(a + whole, left), load_part(b + whole, left)), out + whole, left);
  }
}

HWY_INLINE void add_to(const float* a, const float* b, std::int64_t n, float* out) {
  combine(a, b, n, out, [](FloatVec va, FloatVec vb) HWY_ATTR { return hn::Add(va, vb); });
}

void add_run(float* to, const float* from, std::int64_t n) {
  add_to(to, from, n, to);
}

void subtract_run(float* to, const float* from, std::int64_t n) {
  combine(to, from, n, to, [](FloatVec a, FloatVec b) HWY_ATTR { return hn::Sub(a, b); });
}

// a / (1 + e^-v), written with e^-|v| so that nothing overflows.
HWY_INLINE FloatVec times_sigmoid(FloatVec a, FloatVec v) {
  const FloatVec one = hn::Set(kFloats, 1.0f);
  const FloatVec e = exp_nonpositive(hn::Neg(hn::Abs(v)));
  const FloatVec numerator = hn::IfThenElse(hn::Lt(v, hn::Zero(kFloats)), e, one);
  return hn::Mul(a, hn::Div(numerator, hn::Add(one, e)));
}

void silu_run(float* gate, const float* up, std::int64_t n) {
  combine(gate, up, n, gate, [](FloatVec g, FloatVec u) HWY_ATTR { return hn::Mul(times_sigmoid(g, g), u); });
}

// g/2 · (1 + tanh t) = g / (1 + e^-2t), with t = sqrt(2/π) · (g + 0.044715 g³).
void gelu_tanh_run(float* gate, const float* up, std::int64_t n) {
  combine(gate, up, n, gate, [](FloatVec g, FloatVec u) HWY_ATTR {
    const FloatVec linear = hn::Set(kFloats, 1.5957691216f), cubic = hn::Set(kFloats, 0.0713548163f);
    const FloatVec twice = hn::Mul(g, hn::MulAdd(hn::Mul(g, g), cubic, linear));
    return hn::Mul(times_sigmoid(g, twice), u);
  });
}

void scale_run(float* row, float scale, std::int64_t n) {
  const FloatVec factor = hn::Set(kFloats, scale);
  combine(row, row, n, row, [factor](FloatVec v, FloatVec) HWY_ATTR { return hn::Mul(v, factor); });
}

// One chunk of at most kTreeChunk elements. `partial` holds the sums of the complete subtrees so
// far, the largest first: adding pair i of the parts joins as many of them as i has trailing one
// bits, and the rest are joined at the end.
HWY_INLINE void tree_chunk(const TreeSum& sum, std::int64_t begin, std::int64_t n,
                           float (*partial)[kTreeChunk]) {
  const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(float);
  const std::size_t pairs = sum.parts.size() / 2;
  int depth = 0;
  for (std::size_t pair = 0; pair < pairs; ++pair) {
    add_to(sum.parts[2 * pair] + begin, sum.parts[2 * pair + 1] + begin, n, partial[depth++]);
    for (std::size_t bits = pair; (bits & 1) != 0; bits >>= 1, --depth)
      add_run(partial[depth - 2], partial[depth - 1], n);
  }
  if (sum.parts.size() % 2 != 0) std::memcpy(partial[depth++], sum.parts.back() + begin, bytes);
  for (; depth > 1; --depth) add_run(partial[depth - 2], partial[depth - 1], n);

  float* total = partial[0];
  if (sum.scale != 1.0f)
    combine(total, total, n, total, [scale = sum.scale](FloatVec v, FloatVec) HWY_ATTR {
      return hn::Mul(v, hn::Set(kFloats, scale));
    });
  if (sum.add_to != nullptr) add_to(sum.add_to + begin, total, n, total);
  std::memcpy(sum.out + begin, total, bytes);
}

void tree_sum_run(const TreeSum& sum, std::int64_t begin, std::int64_t end) {
  HWY_ALIGN float partial[kTreeLevels][kTreeChunk];
  for (; begin < end; begin += kTreeChunk) tree_chunk(sum, begin, std::min(kTreeChunk, end - begin), partial);
}

}  // namespace
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/base/error.h"
#include "kernels/convert.h"
#include "kernels/cpu/simd/dispatch.h"
#include "kernels/cpu/weights/packed.h"

namespace ptrt {
namespace {

PTRT_EXPORT(add_run);
PTRT_EXPORT(subtract_run);
PTRT_EXPORT(silu_run);
PTRT_EXPORT(gelu_tanh_run);
PTRT_EXPORT(scale_run);
PTRT_EXPORT(tree_sum_run);

// Elements of a task: a few microseconds, a multiple of every vector and of kTreeChunk.
constexpr std::int64_t kElementsPerTask = 16 * 1024;

std::int64_t tasks_for(std::int64_t elements) {
  return (elements + kElementsPerTask - 1) / kElementsPerTask;
}

// body(to, from, n) over the elements of all tracks, cut into pieces. Pieces of small tracks share
// a task, so that a decode step of packed tracks does not wake other threads for a few microseconds
// of work.
template <class Body>
void for_runs(ThreadPool& pool, const Tensor& from, const Tensor& to, const Body& body) {
  PTRT_CHECK(from.rows == to.rows && from.width == to.width);
  PTRT_CHECK(from.tracks == to.tracks || from.tracks == 1);
  const std::int64_t elements = to.rows * to.width;
  if (elements == 0) return;
  const std::int64_t track_pieces = tasks_for(elements), pieces = track_pieces * to.tracks;
  const std::int64_t per_task = std::max<std::int64_t>(1, kElementsPerTask / elements);
  pool.parallel_for((pieces + per_task - 1) / per_task, [&](std::int64_t task, int) {
    const std::int64_t end = std::min((task + 1) * per_task, pieces);
    for (std::int64_t piece = task * per_task; piece < end; ++piece) {
      const std::int64_t track = piece / track_pieces, begin = piece % track_pieces * kElementsPerTask;
      const std::int64_t n = std::min(kElementsPerTask, elements - begin);
      body(to.row(track, 0) + begin, from.row(from.tracks == 1 ? 0 : track, 0) + begin, n);
    }
  });
}

}  // namespace

void add(ThreadPool& pool, Tensor a, Tensor h) {
  for_runs(pool, a, h, PTRT_DISPATCH(add_run));
}

void subtract(ThreadPool& pool, Tensor x, Tensor y) {
  for_runs(pool, x, y, PTRT_DISPATCH(subtract_run));
}

void copy(ThreadPool& pool, Tensor x, Tensor out) {
  for_runs(pool, x, out, [](float* to, const float* from, std::int64_t n) {
    std::memmove(to, from, static_cast<std::size_t>(n) * sizeof(float));
  });
}

void glu(ThreadPool& pool, FfnActivation activation, Tensor gate, Tensor up) {
  const auto run = activation == FfnActivation::silu ? PTRT_DISPATCH(silu_run) : PTRT_DISPATCH(gelu_tanh_run);
  for_runs(pool, up, gate, run);
}

void add_bias(ThreadPool& pool, std::span<const LinearJob> jobs) {
  std::int64_t rows = 0, elements = 0;
  for (const LinearJob& job : jobs) {
    if (job.bias == nullptr) continue;
    PTRT_CHECK(static_cast<std::int64_t>(job.bias->size()) == job.y.tracks);
    for (const Weight& w : *job.bias) PTRT_CHECK(w.dtype == DType::float32 && w.in == job.y.width);
    rows += job.y.tracks * job.y.rows;
    elements += job.y.tracks * job.y.rows * job.y.width;
  }
  if (rows == 0) return;
  const auto run = PTRT_DISPATCH(add_run);
  // Row i of all rows that have a bias.
  const auto add_to_row = [&](std::int64_t i) {
    for (const LinearJob& job : jobs) {
      if (job.bias == nullptr) continue;
      if (const std::int64_t count = job.y.tracks * job.y.rows; i >= count) {
        i -= count;
        continue;
      }
      const std::int64_t track = i / job.y.rows;
      const auto* bias = static_cast<const float*>((*job.bias)[static_cast<std::size_t>(track)].data);
      return run(job.y.row(track, i % job.y.rows), bias, job.y.width);
    }
  };
  const std::int64_t tasks = std::min(rows, tasks_for(elements));
  pool.parallel_for(tasks, [&](std::int64_t task, int) {
    for (std::int64_t i = rows * task / tasks; i < rows * (task + 1) / tasks; ++i) add_to_row(i);
  });
}

void embed(ThreadPool& pool, const Weight& table, std::span<const std::int32_t> tokens, float scale,
           Tensor x) {
  const auto multiply = PTRT_DISPATCH(scale_run);
  PTRT_CHECK(x.width == table.in && static_cast<std::int64_t>(tokens.size()) == x.rows);
  const std::int64_t rows_per_task = std::max<std::int64_t>(1, kElementsPerTask / x.width);
  pool.parallel_for((x.rows + rows_per_task - 1) / rows_per_task, [&](std::int64_t task, int) {
    const std::int64_t begin = task * rows_per_task, end = std::min(begin + rows_per_task, x.rows);
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t token = tokens[static_cast<std::size_t>(r)];
      PTRT_CHECK(token >= 0 && token < table.out);
      if (table.packed) {
        unpack_row(packed_layout(table), static_cast<const std::byte*>(table.data), token, x.row(0, r));
      } else {
        const auto row_bytes = table.in * static_cast<std::int64_t>(size_of(table.dtype));
        const auto* row = static_cast<const std::byte*>(table.data) + token * row_bytes;
        widen(table.dtype, row, table.in, x.row(0, r));
      }
      if (scale != 1) multiply(x.row(0, r), scale, x.width);
    }
  });
}

void tree_sum(ThreadPool& pool, std::span<const float* const> parts, std::int64_t count, float scale,
              const float* add_to, float* out) {
  PTRT_CHECK(!parts.empty());
  const TreeSum sum{parts, scale, add_to, out};
  const auto run = PTRT_DISPATCH(tree_sum_run);
  pool.parallel_for(tasks_for(count), [&](std::int64_t task, int) {
    const std::int64_t begin = task * kElementsPerTask;
    run(sum, begin, std::min(begin + kElementsPerTask, count));
  });
}

}  // namespace ptrt
#endif  // HWY_ONCE
