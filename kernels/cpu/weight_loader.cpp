#include "kernels/cpu/weight_loader.h"

#include <algorithm>

#include "kernels/error.h"

namespace ptrt {
namespace {

constexpr std::int64_t kPieceBytes = std::int64_t{128} << 10;

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

DType WeightLoader::kept_type(const WeightSpec& spec) const {
  const bool stored_int8 = spec.dtype == DType::int8;
  if (spec.role != WeightRole::matrix) {
    if (stored_int8) throw_bad_input("{}: int8 is for matrices; expected a floating type", spec.name);
    if (spec.role == WeightRole::vector) return DType::float32;
    const bool rounded = spec.role == WeightRole::tied_embedding && options_.compute == Compute::bfloat16;
    return rounded ? DType::bfloat16 : spec.dtype;
  }
  const bool becomes_int8 = stored_int8 || options_.quantize_int8;
  if (options_.compute == Compute::bfloat16 && becomes_int8)
    throw_bad_input("{}: int8 weights cannot take bfloat16 products; compute in int8 or float32", spec.name);
  if (options_.compute == Compute::int8 && !becomes_int8)
    throw_bad_input("{}: int8 products need int8 weights, found {}; quantise them or compute in another type",
                    spec.name, to_string(spec.dtype));
  if (becomes_int8) return DType::int8;
  return options_.compute == Compute::bfloat16 ? DType::bfloat16 : spec.dtype;
}

Weight WeightLoader::load(const WeightSpec& spec, WeightSource& source) {
  PTRT_CHECK(spec.count >= 1 && spec.out >= 1 && spec.in >= 1);
  const bool packed = spec.role != WeightRole::vector && spec.role != WeightRole::embedding;
  Weight weight{nullptr, kept_type(spec), spec.count, spec.out, spec.in, packed};
  const PackedLayout layout = packed_layout(weight);
  std::size_t bytes = static_cast<std::size_t>(spec.count * spec.out * spec.in) * size_of(weight.dtype);
  if (packed) bytes = static_cast<std::size_t>(spec.count * layout.matrix_bytes());
  std::byte* to = arena_.take(bytes, spec.name);
  if (packed) {
    load_packed(spec, source, layout, to);
  } else if (spec.role == WeightRole::vector) {
    load_vector(spec, source, to);
  } else {
    load_rows(spec, source, to);
  }
  weight.data = to;
  bytes_ += bytes;
  return weight;
}

void WeightLoader::load_rows(const WeightSpec& spec, WeightSource& source, std::byte* to) {
  const std::int64_t row_bytes = spec.in * static_cast<std::int64_t>(size_of(spec.dtype));
  const std::int64_t rows = spec.count * spec.out, step = std::max<std::int64_t>(1, kPieceBytes / row_bytes);
  pool_.parallel_for(divide_up(rows, step), [&](std::int64_t piece, int) {
    const std::int64_t first = piece * step, count = std::min(step, rows - first);
    source.read(first, {to + first * row_bytes, static_cast<std::size_t>(count * row_bytes)});
  });
}

void WeightLoader::load_vector(const WeightSpec& spec, WeightSource& source, std::byte* to) {
  const std::int64_t elements = spec.count * spec.out * spec.in;
  std::vector<std::byte>& rows = buffers_[0].rows;
  rows.resize(static_cast<std::size_t>(elements) * size_of(spec.dtype));
  source.read(0, rows);
  widen(spec.dtype, rows.data(), elements, reinterpret_cast<float*>(to));
}

void WeightLoader::load_packed(const WeightSpec& spec, WeightSource& source, const PackedLayout& layout,
                               std::byte* to) {
  const std::int64_t row_bytes = spec.in * static_cast<std::int64_t>(size_of(spec.dtype));
  const std::int64_t row_scales = spec.dtype == DType::int8 ? layout.groups() : 0;
  const std::int64_t panels = std::max<std::int64_t>(1, kPieceBytes / (row_bytes * kPanelOuts));
  const std::int64_t pieces = divide_up(layout.panels(), panels);  // of a matrix
  pool_.parallel_for(spec.count * pieces, [&](std::int64_t piece, int worker) {
    Buffers& buffers = buffers_[static_cast<std::size_t>(worker)];
    const std::int64_t panel = piece % pieces * panels, matrix = piece / pieces;
    const std::int64_t first = panel * kPanelOuts, count = std::min(panels * kPanelOuts, spec.out - first);
    buffers.rows.resize(static_cast<std::size_t>(count * row_bytes));
    source.read(matrix * spec.out + first, buffers.rows);
    buffers.scales.resize(static_cast<std::size_t>(count * row_scales));
    if (row_scales > 0)
      source.read_scales(matrix * spec.out + first, std::as_writable_bytes(std::span(buffers.scales)));
    for (std::int64_t row = 0; row < count; row += kPanelOuts)
      pack_rows(spec, layout, matrix * spec.out + first, row, std::min(kPanelOuts, count - row), buffers,
                to + matrix * layout.matrix_bytes() + (panel + row / kPanelOuts) * layout.panel_bytes());
  });
}

// One panel from rows [row, row + count) of the piece, which is the weight's from row `first` on.
void WeightLoader::pack_rows(const WeightSpec& spec, const PackedLayout& layout, std::int64_t first,
                             std::int64_t row, std::int64_t count, Buffers& buffers, std::byte* to) {
  const std::int64_t row_bytes = spec.in * static_cast<std::int64_t>(size_of(spec.dtype));
  const std::byte* from = buffers.rows.data() + row * row_bytes;
  if (layout.dtype == spec.dtype) {
    const std::uint16_t* scales = buffers.scales.data();
    if (spec.dtype == DType::int8) scales += row * layout.groups();
    return pack_panel(layout, from, scales, count, to);
  }
  if (layout.dtype == DType::int8) {
    Int8Rows& small = buffers.quantized;
    small.quantize(spec, first + row, {from, static_cast<std::size_t>(count * row_bytes)});
    return pack_panel(layout, reinterpret_cast<const std::byte*>(small.q().data()), small.scales().data(),
                      count, to);
  }
  const std::int64_t elements = count * spec.in;
  buffers.wide.resize(static_cast<std::size_t>(elements));
  buffers.rounded.resize(static_cast<std::size_t>(elements));
  widen(spec.dtype, from, elements, buffers.wide.data());
  round_to_bfloat16(buffers.wide.data(), elements, buffers.rounded.data());
  pack_panel(layout, reinterpret_cast<const std::byte*>(buffers.rounded.data()), nullptr, count, to);
}

}  // namespace ptrt
