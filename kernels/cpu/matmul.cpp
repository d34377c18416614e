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
  PTRT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    PTRT_UNROLL
    for (int o = 0; o < kOuts; ++o) acc[r][o] = hn::Zero(kFloats);
  }

  const auto step = [&](std::int64_t i, const auto& load) HWY_ATTR {
    FloatVec xv[kRows];
    PTRT_UNROLL
    for (int r = 0; r < kRows; ++r) xv[r] = load(x[r] + i);
    PTRT_UNROLL
    for (int o = 0; o < kOuts; ++o) {
      const FloatVec wv = load(w[o] + i);
      PTRT_UNROLL
      for (int r = 0; r < kRows; ++r) acc[r][o] = hn::MulAdd(xv[r], wv, acc[r][o]);
    }
  };
  const std::int64_t whole = whole_vectors(n);
  for (std::int64_t i = 0; i < whole; i += kLanes)
    step(i, [](const auto* from) HWY_ATTR { return load_wide(from); });
  if (whole < n) step(whole, [left = n - whole](const auto* from) HWY_ATTR { return load_part(from, left); });

  PTRT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    PTRT_UNROLL
    for (int q = 0; q < kQuads; ++q)
      sums[r][q] = sum_lanes_of_four(acc[r][4 * q], acc[r][4 * q + 1], acc[r][4 * q + 2], acc[r][4 * q + 3]);
  }
}

// Rows of x and y, all of them or one tile's.
struct RowPointers {
  const float* x[2 * kTileRows];
  float* y[2 * kTileRows];

  RowPointers(const Product& p, std::int64_t first, std::int64_t rows) {
    for (std::int64_t r = 0; r < rows; ++r) {
      x[r] = p.x_row(first + r);
      y[r] = p.y_row(first + r);
    }
  }
};

// A tile's place in the product: the elements [begin, begin + n) of the sums, the outs from `out` on; of its
// last quad only the first `last_outs` exist.
struct TilePlace {
  std::int64_t begin, n, out, last_outs;
};

// Computes a tile and puts it into y, or adds it where earlier blocks of the sum are there. `w` points at the
// block, `x` and `y` at row starts.
template <int kRows, int kQuads, typename T>
HWY_NOINLINE void tile_to_y(const float* const* x, const T* const* w, float* const* y,
                            const TilePlace& place) {
  const float* x_block[kRows];
  for (int r = 0; r < kRows; ++r) x_block[r] = x[r] + place.begin;
  QuadVec sums[kRows][kQuads];
  tile<kRows, kQuads>(x_block, w, place.n, sums);
  const bool first = place.begin == 0;
  PTRT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    PTRT_UNROLL
    for (int q = 0; q < kQuads; ++q) {
      float* to = y[r] + place.out + q * kQuadOuts;
      if (q + 1 < kQuads || place.last_outs == kQuadOuts) {
        hn::StoreU(first ? sums[r][q] : hn::Add(hn::LoadU(kQuad, to), sums[r][q]), kQuad, to);
        continue;
      }
      HWY_ALIGN float part[kQuadOuts];
      hn::Store(sums[r][q], kQuad, part);
      for (std::int64_t o = 0; o < place.last_outs; ++o) to[o] = first ? part[o] : to[o] + part[o];
    }
  }
}

// Rows of the tiles that `rows` are cut into: as equal as can be, at most kTileRows.
constexpr std::int64_t rows_per_tile(std::int64_t rows) {
  const std::int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  return (rows + tiles - 1) / tiles;
}

// tile_to_y with a number of rows known at run time, 1 <= rows <= kTileRows.
template <typename T, int kRows = kTileRows>
HWY_INLINE void rows_to_y(std::int64_t rows, const float* const* x, const T* const* w, float* const* y,
                          const TilePlace& place) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return rows_to_y<T, kRows - 1>(rows, x, w, y, place);
  }
  tile_to_y<kRows, 1>(x, w, y, place);
}

// Where the weights of kOuts outs from `out` begin; beyond out_end the last out again.
template <int kOuts, typename T>
HWY_INLINE void weight_rows(const Product& p, const TilePlace& place, std::int64_t out_end, const T** rows) {
  for (int o = 0; o < kOuts; ++o)
    rows[o] = static_cast<const T*>(p.w) + std::min(place.out + o, out_end - 1) * p.in + place.begin;
}

// Goes through the outs of a block from `out` on, kQuads quads at a time, and through the blocks of their
// sums.
template <int kQuads, typename T, class Body>
HWY_INLINE void for_places(const MatmulBlock& block, std::int64_t out, std::int64_t out_end,
                           const Body& body) {
  constexpr int kOuts = kQuads * kQuadOuts;
  const Product& p = *block.product;
  for (; out < out_end; out += kOuts) {
    for (std::int64_t begin = 0; begin < p.in; begin += kSumBlock) {
      const TilePlace place{begin, std::min(kSumBlock, p.in - begin), out,
                            std::min<std::int64_t>(out_end - out - (kOuts - kQuadOuts), kQuadOuts)};
      const T* w[kOuts];
      weight_rows<kOuts>(p, place, out_end, w);
      body(w, place);
    }
  }
}

// One row: eight outs at a time, because four chains do not hide the latency of the multiply-add.
template <typename T>
void one_row(const MatmulBlock& block) {
  const RowPointers row(*block.product, block.row_begin, 1);
  const std::int64_t outs = block.out_end - block.out_begin;
  const std::int64_t pairs_end = block.out_begin + outs / (2 * kQuadOuts) * (2 * kQuadOuts);
  for_places<2, T>(block, block.out_begin, pairs_end, [&](const T* const* w, const TilePlace& place) {
    tile_to_y<1, 2>(row.x, w, row.y, place);
  });
  for_places<1, T>(block, pairs_end, block.out_end, [&](const T* const* w, const TilePlace& place) {
    tile_to_y<1, 1>(row.x, w, row.y, place);
  });
}

// At most two tiles of rows: weights are widened in registers, for the second tile again from the first-level
// cache.
template <typename T>
void few_rows(const MatmulBlock& block) {
  const std::int64_t rows = block.row_end - block.row_begin, step = rows_per_tile(rows);
  const RowPointers all(*block.product, block.row_begin, rows);
  for_places<1, T>(block, block.out_begin, block.out_end, [&](const T* const* w, const TilePlace& place) {
    for (std::int64_t r = 0; r < rows; r += step)
      rows_to_y(std::min(rows - r, step), all.x + r, w, all.y + r, place);
  });
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

// Many rows: each panel of four outs is widened once and then meets every tile of rows. Blocks of the sums
// come outside the outs, so that a block of x stays in the second-level cache.
template <typename T>
void many_rows(const MatmulBlock& block, float* panel) {
  const Product& p = *block.product;
  const std::int64_t step = rows_per_tile(block.row_end - block.row_begin);
  const float* panel_rows[kQuadOuts];
  for (int o = 0; o < kQuadOuts; ++o) panel_rows[o] = panel + o * kSumBlock;
  for (std::int64_t begin = 0; begin < p.in; begin += kSumBlock) {
    for (std::int64_t out = block.out_begin; out < block.out_end; out += kQuadOuts) {
      const TilePlace place{begin, std::min(kSumBlock, p.in - begin), out,
                            std::min(block.out_end - out, kQuadOuts)};
      const T* w[kQuadOuts];
      weight_rows<kQuadOuts>(p, place, block.out_end, w);
      widen_panel(w, place.n, panel);
      for (std::int64_t row = block.row_begin; row < block.row_end; row += step) {
        const std::int64_t rows = std::min(block.row_end - row, step);
        const RowPointers tile_rows(p, row, rows);
        rows_to_y(rows, tile_rows.x, panel_rows, tile_rows.y, place);
      }
    }
  }
}

template <typename T>
void run_typed(const MatmulBlock& block, float* panel) {
  const std::int64_t rows = block.row_end - block.row_begin;
  if (rows == 1) return one_row<T>(block);
  if (rows <= 2 * kTileRows) return few_rows<T>(block);
  many_rows<T>(block, panel);
}

void matmul_block(const MatmulBlock& block, float* panel) {
  switch (block.product->dtype) {
    case DType::float32:
      return run_typed<float>(block, panel);
    case DType::float16:
      return run_typed<hwy::float16_t>(block, panel);
    case DType::bfloat16:
      return run_typed<hwy::bfloat16_t>(block, panel);
    case DType::int8:
      break;
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
constexpr std::int64_t kMinOutsPerTask = 16;

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

Matmul::Matmul(ThreadPool& pool) : pool_(pool) {
  panels_.reserve(pool.threads() * kPanelFloats);
}

Matmul::Plan Matmul::Plan::of(const Product& p, std::int64_t first_task) {
  Plan plan;
  plan.first_task = first_task;
  plan.row_blocks = divide_up(p.rows, kRowBlock);
  if (p.rows == 0) return plan;
  plan.rows_per_block = divide_up(p.rows, plan.row_blocks);
  const std::int64_t outs = divide_up(kTaskWork, plan.rows_per_block * p.in);
  plan.outs_per_block = std::max(divide_up(outs, kMinOutsPerTask) * kMinOutsPerTask, kMinOutsPerTask);
  return plan;
}

std::int64_t Matmul::Plan::tasks(const Product& p) const {
  return p.rows == 0 ? 0 : row_blocks * divide_up(p.out, outs_per_block);
}

void Matmul::run(std::span<const Product> products) {
  plans_.clear();
  std::int64_t tasks = 0;
  for (const Product& p : products) {
    plans_.push_back(Plan::of(p, tasks));
    tasks += plans_.back().tasks(p);
  }
  float* panels = panels_.reserve(pool_.threads() * kPanelFloats);
  const auto run_block = HWY_DYNAMIC_DISPATCH(matmul_block);
  pool_.parallel_for(tasks, [&](std::int64_t task, int worker) {
    const auto after = std::upper_bound(plans_.begin(), plans_.end(), task,
                                        [](std::int64_t t, const Plan& plan) { return t < plan.first_task; });
    const Plan& plan = *(after - 1);
    const Product& p = products[static_cast<std::size_t>(after - 1 - plans_.begin())];
    const std::int64_t local = task - plan.first_task;
    const std::int64_t row = local % plan.row_blocks * plan.rows_per_block;
    const std::int64_t out = local / plan.row_blocks * plan.outs_per_block;
    const MatmulBlock block{&p, row, std::min(row + plan.rows_per_block, p.rows), out,
                            std::min(out + plan.outs_per_block, p.out)};
    run_block(block, panels + worker * kPanelFloats);
  });
}

}  // namespace ptrt
#endif  // HWY_ONCE
