#include "kernels/cpu/weight_loader.h"

#include <algorithm>

#include "kernels/convert.h"
#include "kernels/error.h"

namespace ptrt {
namespace {

constexpr std::int64_t kPieceBytes = std::int64_t{512} << 10;

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
  if (spec.role == WeightRole::vector) return load_vector(spec, source);
  return spec.role == WeightRole::embedding ? load_rows(spec, source) : load_packed(spec, source);
}

Weight WeightLoader::load_rows(const WeightSpec& spec, WeightSource& source) {
  Weight weight{nullptr, kept_type(spec), spec.count, spec.out, spec.in};
  const std::size_t bytes = static_cast<std::size_t>(spec.count * spec.out * spec.in) * size_of(spec.dtype);
  std::byte* to = arena_.take(bytes, spec.name);
  source.read(0, {to, bytes});
  weight.data = to;
  bytes_ += bytes;
  return weight;
}

Weight WeightLoader::load_vector(const WeightSpec& spec, WeightSource& source) {
  Weight weight{nullptr, kept_type(spec), spec.count, spec.out, spec.in};
  const std::int64_t elements = spec.count * spec.out * spec.in;
  piece_.resize(static_cast<std::size_t>(elements) * size_of(spec.dtype));
  source.read(0, piece_);
  const std::size_t bytes = static_cast<std::size_t>(elements) * sizeof(float);
  auto* to = reinterpret_cast<float*>(arena_.take(bytes, spec.name));
  widen(spec.dtype, piece_.data(), elements, to);
  weight.data = to;
  bytes_ += bytes;
  return weight;
}

Weight WeightLoader::load_packed(const WeightSpec& spec, WeightSource& source) {
  Weight weight{nullptr, kept_type(spec), spec.count, spec.out, spec.in, true};
  const PackedLayout layout = packed_layout(weight);
  const std::size_t bytes = static_cast<std::size_t>(spec.count * layout.matrix_bytes());
  std::byte* to = arena_.take(bytes, spec.name);

  const std::int64_t row_bytes = spec.in * static_cast<std::int64_t>(size_of(spec.dtype));
  const std::int64_t row_scales = spec.dtype == DType::int8 ? layout.groups() : 0;
  const std::int64_t step =
      std::min(std::max<std::int64_t>(1, kPieceBytes / (row_bytes * kPanelOuts)), layout.panels()) *
      kPanelOuts;
  piece_.resize(static_cast<std::size_t>(step * row_bytes));
  piece_scales_.resize(static_cast<std::size_t>(step * row_scales));
  for (std::int64_t matrix = 0; matrix < spec.count; ++matrix)
    for (std::int64_t out = 0; out < spec.out; out += step) {
      const std::int64_t first = matrix * spec.out + out;
      const Piece piece{piece_.data(), piece_scales_.data(), first, std::min(step, spec.out - out)};
      source.read(first, std::span(piece_).first(static_cast<std::size_t>(piece.count * row_bytes)));
      if (row_scales > 0)
        source.read_scales(first, std::as_writable_bytes(std::span(piece_scales_))
                                      .first(static_cast<std::size_t>(piece.count * row_scales * 2)));
      pack_piece(spec, layout, piece,
                 to + matrix * layout.matrix_bytes() + out / kPanelOuts * layout.panel_bytes());
    }
  weight.data = to;
  bytes_ += bytes;
  return weight;
}

void WeightLoader::pack_piece(const WeightSpec& spec, const PackedLayout& layout, const Piece& piece,
                              std::byte* to) {
  const std::int64_t row_bytes = spec.in * static_cast<std::int64_t>(size_of(spec.dtype));
  pool_.parallel_for((piece.count + kPanelOuts - 1) / kPanelOuts, [&](std::int64_t panel, int) {
    const std::int64_t first = panel * kPanelOuts, rows = std::min(kPanelOuts, piece.count - first);
    const std::byte* from = piece.rows + first * row_bytes;
    std::byte* panel_to = to + panel * layout.panel_bytes();
    if (layout.dtype == spec.dtype) {
      const bool int8 = spec.dtype == DType::int8;
      return pack_panel(layout, from, int8 ? piece.scales + first * layout.groups() : nullptr, rows,
                        panel_to);
    }
    if (layout.dtype == DType::int8) {
      Int8Rows small;
      small.quantize(spec, piece.first + first, {from, static_cast<std::size_t>(rows * row_bytes)});
      return pack_panel(layout, reinterpret_cast<const std::byte*>(small.q().data()), small.scales().data(),
                        rows, panel_to);
    }
    std::vector<float> wide(static_cast<std::size_t>(rows * spec.in));
    std::vector<std::uint16_t> rounded(wide.size());
    widen(spec.dtype, from, rows * spec.in, wide.data());
    round_to_bfloat16(wide.data(), rows * spec.in, rounded.data());
    pack_panel(layout, reinterpret_cast<const std::byte*>(rounded.data()), nullptr, rows, panel_to);
  });
}

}  // namespace ptrt
