#include "kernels/cpu/weight_loader.h"

#include <algorithm>
#include <cstring>

#include "kernels/error.h"
#include "kernels/int8.h"
#include "kernels/scalar_types.h"

namespace ptrt {
namespace {

constexpr std::int64_t kPieceBytes = std::int64_t{512} << 10;

template <typename T>
T element(const std::byte* from, std::int64_t i) {
  T value;
  std::memcpy(&value, from + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// n elements of a floating type, widened.
void widen(DType dtype, const std::byte* from, std::int64_t n, float* to) {
  PTRT_CHECK(dtype != DType::int8);
  for (std::int64_t i = 0; i < n; ++i) {
    if (dtype == DType::float32) to[i] = element<float>(from, i);
    if (dtype == DType::float16) to[i] = from_float16(element<std::uint16_t>(from, i));
    if (dtype == DType::bfloat16) to[i] = from_bfloat16(element<std::uint16_t>(from, i));
  }
}

// At most one panel's rows in a type that they were not stored in: bfloat16 or int8.
struct ConvertedRows {
  ConvertedRows(DType from_type, DType to_type, const std::byte* from, std::int64_t rows, std::int64_t in)
      : bytes(static_cast<std::size_t>(rows * in) * size_of(to_type)) {
    const auto width = static_cast<std::size_t>(in), groups = static_cast<std::size_t>(int8_groups(in));
    const std::size_t row_bytes = width * size_of(from_type);
    std::vector<float> wide(width);
    if (to_type == DType::int8) scales.resize(static_cast<std::size_t>(rows) * groups);
    for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
      widen(from_type, from + r * row_bytes, in, wide.data());
      if (to_type == DType::int8) {
        quantize_int8_row(wide, {reinterpret_cast<std::int8_t*>(bytes.data()) + r * width, width},
                          std::span(scales).subspan(r * groups, groups));
        continue;
      }
      for (std::size_t i = 0; i < width; ++i) {
        const std::uint16_t narrow = to_bfloat16(wide[i]);
        std::memcpy(bytes.data() + (r * width + i) * 2, &narrow, sizeof(narrow));
      }
    }
  }

  std::vector<std::byte> bytes;
  std::vector<std::uint16_t> scales;
};

}  // namespace

DType WeightLoader::kept_type(const WeightSpec& spec) const {
  const bool stored_int8 = spec.dtype == DType::int8;
  if (spec.role != WeightRole::matrix && spec.role != WeightRole::tied_embedding) {
    if (stored_int8) throw_bad_input("{}: int8 is for matrices; expected a floating type", spec.name);
    return spec.role == WeightRole::vector ? DType::float32 : spec.dtype;
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
      const Piece piece{piece_.data(), piece_scales_.data(), std::min(step, spec.out - out)};
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
    const ConvertedRows converted(spec.dtype, layout.dtype, from, rows, spec.in);
    pack_panel(layout, converted.bytes.data(), converted.scales.data(), rows, panel_to);
  });
}

}  // namespace ptrt
