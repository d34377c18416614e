#include "kernels/cpu/matmul.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul.cpp"
#include "hwy/foreach_target.h"
// foreach_target comes first
#include "kernels/cpu/simd-inl.h"

#ifndef PTRT_KERNELS_CPU_MATMUL_ONCE_
#define PTRT_KERNELS_CPU_MATMUL_ONCE_
namespace ptrt {

inline constexpr std::int64_t kQuadOuts = 4;  // outs of a tile
inline constexpr std::int64_t kRowBlock =
    72;  // rows of a task: their block of x stays in the second-level cache

struct MatmulBlock {
  const Product* product;
  std::int64_t row_begin, row_end, out_begin, out_end;
};

}  // namespace ptrt
#endif

HWY_BEFORE_NAMESPACE();
namespace ptrt::HWY_NAMESPACE {
namespace {

// Rows of a tile: rows · 4 accumulators, the rows' vectors of x and one of weights fill the registers.
#if HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 3;
#endif

// sums[r][o] = x[r] · w[o] over n elements, n <= kSumBlock.
template <int kRows, int kQuads, typename T>
HWY_INLINE void tile(const float* const* x, const T* const* w, std::int64_t n,
                     QuadVec (&sums)[kRows][kQuads]) {
  constexpr int kOuts = kQuads * kQuadOuts;
  FloatVec acc[kRows][kOuts];
  for (int r = 0; r < kRows; ++r)
    for (int o = 0; o < kOuts; ++o) acc[r][o] = hn::Zero(kFloats);

  const std::int64_t whole = whole_vectors(n);
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    FloatVec xv[kRows];
    for (int r = 0; r < kRows; ++r) xv[r] = hn::LoadU(kFloats, x[r] + i);
    for (int o = 0; o < kOuts; ++o) {
      const FloatVec wv = load_wide(w[o] + i);
      for (int r = 0; r < kRows; ++r) acc[r][o] = hn::MulAdd(xv[r], wv, acc[r][o]);
    }
  }
  if (whole < n) {
    for (int o = 0; o < kOuts; ++o) {
      const FloatVec wv = load_part(w[o] + whole, n - whole);
      for (int r = 0; r < kRows; ++r)
        acc[r][o] = hn::MulAdd(load_part(x[r] + whole, n - whole), wv, acc[r][o]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int q = 0; q < kQuads; ++q)
      sums[r][q] = sum_lanes_of_four(acc[r][4 * q], acc[r][4 * q + 1], acc[r][4 * q + 2], acc[r][4 * q + 3]);
}

// Computes the tile of block elements [begin, begin + n) of the sum and puts it into y, or adds it when begin
// > 0. `w` points at the block, `x` at row starts. Of the last quad only the first `last_outs` outs exist.
template <int kRows, int kQuads, typename T>
HWY_NOINLINE void tile_to_y(const float* const* x, const T* const* w, float* const* y, std::int64_t begin,
                            std::int64_t n, std::int64_t last_outs) {
  const float* x_block[kRows];
  for (int r = 0; r < kRows; ++r) x_block[r] = x[r] + begin;
  QuadVec sums[kRows][kQuads];
  tile<kRows, kQuads>(x_block, w, n, sums);
  for (int r = 0; r < kRows; ++r) {
    for (int q = 0; q < kQuads; ++q) {
      float* to = y[r] + q * kQuadOuts;
      if (q + 1 < kQuads || last_outs == kQuadOuts) {
        hn::StoreU(begin == 0 ? sums[r][q] : hn::Add(hn::LoadU(kQuad, to), sums[r][q]), kQuad, to);
        continue;
      }
      HWY_ALIGN float part[kQuadOuts];
      hn::Store(sums[r][q], kQuad, part);
      for (std::int64_t o = 0; o < last_outs; ++o) to[o] = begin == 0 ? part[o] : to[o] + part[o];
    }
  }
}

// tile_to_y with a number of rows known at run time, 1 <= rows <= kTileRows.
template <int kQuads, typename T, int kRows = kTileRows>
HWY_INLINE void rows_to_y(std::int64_t rows, const float* const* x, const T* const* w, float* const* y,
                          std::int64_t begin, std::int64_t n, std::int64_t last_outs) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return rows_to_y<kQuads, T, kRows - 1>(rows, x, w, y, begin, n, last_outs);
  }
  tile_to_y<kRows, kQuads>(x, w, y, begin, n, last_outs);
}

// Where the weights of kOuts outs from `o` begin; beyond out_end the last out again.
template <int kOuts, typename T>
HWY_INLINE void weight_rows(const Product& p, std::int64_t o, std::int64_t out_end, std::int64_t begin,
                            const T** rows) {
  for (int i = 0; i < kOuts; ++i)
    rows[i] = static_cast<const T*>(p.w) + std::min(o + i, out_end - 1) * p.in + begin;
}

// At most one tile of rows: every weight is read once, widened in registers.
template <typename T>
void few_rows(const MatmulBlock& block) {
  const Product& p = *block.product;
  const std::int64_t rows = block.row_end - block.row_begin;
  const float* x[kTileRows];
  for (std::int64_t r = 0; r < rows; ++r) x[r] = p.x_row(block.row_begin + r);
  std::int64_t o = block.out_begin;
  const auto run_quads = [&](auto quads) {
    constexpr int kQuads = decltype(quads)::value;
    constexpr int kOuts = kQuads * kQuadOuts;
    const T* w[kOuts];
    float* y[kTileRows];
    for (std::int64_t r = 0; r < rows; ++r) y[r] = p.y_row(block.row_begin + r) + o;
    const std::int64_t last_outs = std::min<std::int64_t>(block.out_end - o - (kOuts - kQuadOuts), kQuadOuts);
    for (std::int64_t begin = 0; begin < p.in; begin += kSumBlock) {
      weight_rows<kOuts>(p, o, block.out_end, begin, w);
      const std::int64_t n = std::min(kSumBlock, p.in - begin);
      if constexpr (kQuads == 2) {
        tile_to_y<1, 2>(x, w, y, begin, n, last_outs);
      } else {
        rows_to_y<1>(rows, x, w, y, begin, n, last_outs);
      }
    }
    o += kOuts;
  };
  if (rows == 1)  // one row alone needs eight chains to hide the latency of the multiply-add
    while (block.out_end - o > kQuadOuts) run_quads(std::integral_constant<int, 2>());
  while (o < block.out_end) run_quads(std::integral_constant<int, 1>());
}

// w[o][0..n) widened to panel[o][0..kSumBlock).
template <typename T>
HWY_INLINE void widen_panel(const T* const* w, std::int64_t n, float* panel) {
  const std::int64_t whole = whole_vectors(n);
  for (int o = 0; o < kQuadOuts; ++o) {
    float* to = panel + o * kSumBlock;
    for (std::int64_t i = 0; i < whole; i += kLanes) hn::StoreU(load_wide(w[o] + i), kFloats, to + i);
    if (whole < n) store_part(load_part(w[o] + whole, n - whole), to + whole, n - whole);
  }
}

// Many rows: each panel of four outs is widened once and then meets every tile of rows.
template <typename T>
void many_rows(const MatmulBlock& block, float* panel) {
  const Product& p = *block.product;
  const float* panel_rows[kQuadOuts];
  for (int o = 0; o < kQuadOuts; ++o) panel_rows[o] = panel + o * kSumBlock;
  for (std::int64_t begin = 0; begin < p.in; begin += kSumBlock) {
    const std::int64_t n = std::min(kSumBlock, p.in - begin);
    for (std::int64_t o = block.out_begin; o < block.out_end; o += kQuadOuts) {
      const T* w[kQuadOuts];
      weight_rows<kQuadOuts>(p, o, block.out_end, begin, w);
      widen_panel(w, n, panel);
      const std::int64_t outs = std::min(block.out_end - o, kQuadOuts);
      for (std::int64_t row = block.row_begin; row < block.row_end; row += kTileRows) {
        const std::int64_t rows = std::min<std::int64_t>(block.row_end - row, kTileRows);
        const float* x[kTileRows];
        float* y[kTileRows];
        for (std::int64_t r = 0; r < rows; ++r) {
          x[r] = p.x_row(row + r);
          y[r] = p.y_row(row + r) + o;
        }
        rows_to_y<1>(rows, x, panel_rows, y, begin, n, outs);
      }
    }
  }
}

template <typename T>
void run_typed(const MatmulBlock& block, float* panel) {
  if (block.row_end - block.row_begin <= kTileRows) {
    few_rows<T>(block);
  } else {
    many_rows<T>(block, panel);
  }
}

void matmul_block(const MatmulBlock& block, float* panel) {
  switch (block.product->dtype) {
    case DType::float32:
      return run_typed<float>(block, panel);
    case DType::float16:
      return run_typed<hwy::float16_t>(block, panel);
    case DType::bfloat16:
      return run_typed<hwy::bfloat16_t>(block, panel);
  }
}

}  // namespace
}  // namespace ptrt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/error.h"

namespace ptrt {
namespace {

HWY_EXPORT(matmul_block);

constexpr std::int64_t kPanelFloats = kQuadOuts * kSumBlock;
// Multiply-adds of a task: some microseconds, so that handing tasks out costs little and the last ones end
// together.
constexpr std::int64_t kTaskWork = 64 * 1024;
constexpr std::int64_t kMaxOutsPerTask = 64;

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

Matmul::Matmul(ThreadPool& pool)
    : pool_(pool),
      panels_(static_cast<std::size_t>(pool.threads()) * static_cast<std::size_t>(kPanelFloats)) {
  plans_.reserve(256);
}

void Matmul::run(std::span<const Product> products) {
  plans_.clear();
  std::int64_t tasks = 0;
  for (const Product& p : products) {
    Plan plan;
    plan.first_task = tasks;
    plan.row_blocks = divide_up(p.rows, kRowBlock);
    const std::int64_t work_per_out = std::max<std::int64_t>(1, std::min(p.rows, kRowBlock) * p.in);
    const std::int64_t outs = divide_up(divide_up(kTaskWork, work_per_out), 8) * 8;
    plan.outs_per_task = std::max<std::int64_t>(outs, 16);
    tasks += plan.row_blocks * divide_up(p.out, plan.outs_per_task);
    plans_.push_back(plan);
  }
  const auto run_block = HWY_DYNAMIC_DISPATCH(matmul_block);
  pool_.parallel_for(tasks, [&](std::int64_t task, int worker) {
    const auto after = std::upper_bound(plans_.begin(), plans_.end(), task,
                                        [](std::int64_t t, const Plan& plan) { return t < plan.first_task; });
    const Plan& plan = *(after - 1);
    const Product& p = products[static_cast<std::size_t>(after - 1 - plans_.begin())];
    const std::int64_t local = task - plan.first_task;
    const std::int64_t row = local % plan.row_blocks * kRowBlock;
    const std::int64_t out = local / plan.row_blocks * plan.outs_per_task;
    const MatmulBlock block{&p, row, std::min(row + kRowBlock, p.rows), out,
                            std::min(out + plan.outs_per_task, p.out)};
    run_block(block, panels_.data() + worker * kPanelFloats);
  });
}

}  // namespace ptrt
#endif  // HWY_ONCE
