// How a block of a product is cut into tiles of rows by panels, for the kernels of every
// instruction set. A tile covers the whole of `in`, so that one sum is one chain in any tile.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/weights/packed.h"

namespace ptrt {

inline constexpr int kMaxTileRows = 12;
inline constexpr int kMaxStreamRows = 8;  // the most that any kernel reads the weights as a stream for

// Panels [panel_begin, panel_end) of a matrix by rows [row_begin, row_end). Row r reads the record
// x + x_rows[r] · x_stride and writes y + y_rows[r] · out; without the indices, row r itself. What
// a record of x holds is up to the kernel (activations.h).
struct MatmulBlock {
  PackedLayout layout;
  const std::byte* matrix = nullptr;
  const std::byte* x = nullptr;
  std::int64_t x_stride = 0;  // bytes
  float* y = nullptr;
  const std::int32_t* x_rows = nullptr;
  const std::int32_t* y_rows = nullptr;
  std::int64_t panel_begin = 0, panel_end = 0, row_begin = 0, row_end = 0;
};

struct MatmulTile {
  const std::byte* panel = nullptr;     // the first
  const std::byte* prefetch = nullptr;  // a panel that a later tile reads, to be fetched along the way
  std::int64_t panel_bytes = 0, in = 0, groups = 0;
  std::int64_t outs = 0;  // that exist from the first panel on, possibly more than the tile's
  const std::byte* x[kMaxTileRows] = {};
  float* y[kMaxTileRows] = {};  // whole rows
  std::int64_t y_offset = 0;    // in them, of the first panel's outs
  std::int64_t count = 1;       // of equal tiles side by side, this one the first

  // Moves to the next tile to the right; not for tiles that fetch.
  __attribute__((always_inline)) void advance(std::int64_t panels) {
    panel += panels * panel_bytes;
    outs -= panels * kPanelOuts;
    y_offset += panels * kPanelOuts;
  }
};

// Tile::kRows rows by Tile::kPanels panels for many rows; what is left over by single panels. Up to
// Tile::kStreamRows rows, which wait for memory, take just enough panels side by side to have
// Tile::kStreamChains sums in flight, so that no sum waits for itself. With a single panel (or
// short ones) the whole block is one ascending stream, which the processor's prefetchers follow
// across the ends of short panels. Tile::run<rows, panels, lines to fetch>(tile) computes
// tile.count of them and leaves the tile after the last one: work between two tiles would take the
// processor's room for loads in flight.
namespace {

// Tiles of up to half the rows fetch nothing: each kind is code.
template <class Tile, int kLines>
inline constexpr int kFewestRows = kLines > 0 ? Tile::kRows / 2 + 1 : 1;

template <class Tile, int kPanels, int kLines, int kRows = Tile::kRows>
void run_rows(std::int64_t rows, MatmulTile& tile) {
  if constexpr (kRows > kFewestRows<Tile, kLines>) {
    if (rows < kRows) return run_rows<Tile, kPanels, kLines, kRows - 1>(rows, tile);
  }
  Tile::template run<kRows, kPanels, kLines>(tile);
}

// Tile number `index` of `count` over one strip; the strip after it is `next`, null where there is
// none.
template <class Tile>
void run_tile(std::int64_t rows, [[maybe_unused]] std::int64_t index, [[maybe_unused]] std::int64_t count,
              [[maybe_unused]] const std::byte* next, MatmulTile& tile) {
  constexpr int kPanels = Tile::kPanels;
  if constexpr (Tile::kFetches) {
    const bool all_at_once = count <= kPanels;  // too few tiles to fetch a panel each
    if (next != nullptr && rows >= kFewestRows<Tile, 1> && index >= 1 &&
        index <= (all_at_once ? 1 : kPanels)) {
      tile.prefetch = next + (index - 1) * tile.panel_bytes;
      return all_at_once ? run_rows<Tile, kPanels, kPanels>(rows, tile)
                         : run_rows<Tile, kPanels, 1>(rows, tile);
    }
  }
  run_rows<Tile, kPanels, 0>(rows, tile);
}

// Without fetching ahead: one panel, or the few side by side that stream_panels() says.
template <class Tile>
void run_few(std::int64_t rows, std::int64_t panels, MatmulTile& tile) {
  if constexpr (Tile::kStreamChains >= 4) {
    if (panels == 4) return run_rows<Tile, 4, 0, 1>(rows, tile);
  }
  if constexpr (Tile::kStreamChains >= 2) {
    if (panels == 2) return run_rows<Tile, 2, 0, Tile::kStreamChains - 1>(rows, tile);
  }
  run_rows<Tile, 1, 0, std::max(Tile::kRows, Tile::kStreamRows)>(rows, tile);
}

// Points the tile at rows [begin, begin + n) of the block and at `panel`.
inline void place_tile(const MatmulBlock& block, std::int64_t panel, std::int64_t begin, std::int64_t n,
                       MatmulTile& tile) {
  tile.panel = block.matrix + panel * tile.panel_bytes;
  tile.outs = block.layout.out - panel * kPanelOuts;
  tile.y_offset = panel * kPanelOuts;
  for (std::int64_t r = 0; r < n; ++r) {
    const std::int64_t x_row = block.x_rows != nullptr ? block.x_rows[begin + r] : begin + r;
    const std::int64_t y_row = block.y_rows != nullptr ? block.y_rows[begin + r] : begin + r;
    tile.x[r] = block.x + x_row * block.x_stride;
    tile.y[r] = block.y + y_row * block.layout.out;
  }
}

// All rows over panels of one strip, as equal groups as can be: the strip stays in the second-level
// cache.
template <class Tile>
void run_strip(const MatmulBlock& block, std::int64_t panel, std::int64_t panels, MatmulTile& tile) {
  const bool follows = panel + 2 * panels <= block.panel_end;
  const std::int64_t rows = block.row_end - block.row_begin;
  const std::int64_t groups = (rows + Tile::kRows - 1) / Tile::kRows, step = (rows + groups - 1) / groups;
  for (std::int64_t begin = block.row_begin; begin < block.row_end; begin += step) {
    const std::int64_t n = block.row_end - begin < step ? block.row_end - begin : step;
    place_tile(block, panel, begin, n, tile);
    if (panels == Tile::kPanels) {
      run_tile<Tile>(n, (begin - block.row_begin) / step, groups,
                     follows ? tile.panel + panels * tile.panel_bytes : nullptr, tile);
    } else {
      run_few<Tile>(n, panels, tile);
    }
  }
}

// Where a panel is so short that the processor begins the sums of the next one while it waits for
// those of the last, one at a time is enough, and what is read is one stream: bytes.
constexpr std::int64_t kShortPanel = 8192;

// Panels side by side for that many rows that wait for memory.
template <class Tile>
std::int64_t stream_panels(std::int64_t rows, std::int64_t left, std::int64_t panel_bytes) {
  std::int64_t panels = 1;
  if (panel_bytes <= kShortPanel) return panels;
  while (panels * rows < Tile::kStreamChains && 2 * panels <= left) panels *= 2;
  return panels;
}

template <class Tile>
void run_stream(const MatmulBlock& block, MatmulTile& tile) {
  const std::int64_t rows = block.row_end - block.row_begin;
  for (std::int64_t panel = block.panel_begin; panel < block.panel_end;) {
    const std::int64_t left = block.panel_end - panel;
    const std::int64_t panels = stream_panels<Tile>(rows, left, tile.panel_bytes);
    place_tile(block, panel, block.row_begin, rows, tile);
    tile.count = left / panels;
    run_few<Tile>(rows, panels, tile);
    panel += tile.count * panels;
  }
}

template <class Tile>
void run_block(const MatmulBlock& block) {
  static_assert(Tile::kStreamRows <= kMaxStreamRows && Tile::kRows <= kMaxTileRows);
  MatmulTile tile;
  tile.panel_bytes = block.layout.panel_bytes();
  tile.in = block.layout.in;
  if (block.layout.dtype == DType::int8) tile.groups = block.layout.groups();
  if (block.row_end - block.row_begin <= Tile::kStreamRows) return run_stream<Tile>(block, tile);
  for (std::int64_t panel = block.panel_begin; panel < block.panel_end;) {
    const std::int64_t panels = block.panel_end - panel >= Tile::kPanels ? Tile::kPanels : 1;
    run_strip<Tile>(block, panel, panels, tile);
    panel += panels;
  }
}

}  // namespace
}  // namespace ptrt
