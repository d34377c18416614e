#include "model_io/file/tensor_copy.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/cpu/weights/packed.h"
#include "model_io/file/finite_scan.h"

namespace ptrt {

void TensorCopy::copy(const TensorSpec& spec, const StoredTensor& stored, WeightLayout layout) {
  const auto reader = from_.open(stored);
  if (layout == WeightLayout::panels && is_multiplied(spec.role)) {
    copy_panels(spec, stored, *reader);
  } else if (row_scale_bytes(stored.dtype, 1) > 0) {
    copy_scaled_rows(spec, stored.dtype, *reader);
  } else {
    copy_rows(spec, stored, *reader);
  }
  reader->verify();
}

void TensorCopy::copy_rows(const TensorSpec& spec, const StoredTensor& stored, TensorReader& reader) {
  StoredTensor in_rows = stored;
  in_rows.layout = WeightLayout::rows;
  FiniteScan finite(in_rows);
  to_.write(spec, stored.dtype, [&](std::int64_t first, std::span<std::byte> bytes) {
    reader.read(first / spec.shape.back(), bytes);
    if (not_finite_ == NotFinite::refuse)
      finite.add(static_cast<std::size_t>(first) * size_of(stored.dtype), bytes);
  });
  reader.verify();
  if (finite.count() > 0) throw_bad_input("{}: dataset {}: {}", stored.file, stored.name, finite.describe());
}

void TensorCopy::copy_scaled_rows(const TensorSpec& spec, DType dtype, TensorReader& reader) {
  const std::int64_t in = spec.shape.back();
  to_.write_scaled(spec, dtype, [&](std::int64_t first, std::int64_t rows) {
    rows_.resize(static_cast<std::size_t>(rows * in) * size_of(dtype));
    scales_.resize(static_cast<std::size_t>(rows) * row_scale_bytes(dtype, in));
    reader.read(first, rows_);
    reader.read_scales(first, scales_);
    return ModelWriter::ScaledPiece{rows_, scales_};
  });
}

void TensorCopy::copy_panels(const TensorSpec& spec, const StoredTensor& stored, TensorReader& reader) {
  const WeightSpec weight = spec.weight(stored.dtype);
  const PackedLayout layout{weight.dtype, weight.out, weight.in};
  const std::size_t row_bytes = static_cast<std::size_t>(weight.in) * size_of(weight.dtype);
  const auto panel_bytes = static_cast<std::size_t>(layout.panel_bytes());
  std::vector<std::uint16_t> scales;
  to_.write_panels(spec, stored.dtype, [&](std::int64_t panel, std::span<std::byte> bytes) {
    for (; !bytes.empty(); ++panel, bytes = bytes.subspan(panel_bytes)) {
      const std::int64_t out = panel % layout.panels() * kPanelOuts;
      const std::int64_t first = panel / layout.panels() * weight.out + out;
      const std::int64_t rows = std::min(kPanelOuts, weight.out - out);
      rows_.resize(static_cast<std::size_t>(rows) * row_bytes);
      reader.read(first, rows_);
      if (stored.dtype == DType::int8) {
        scales.resize(static_cast<std::size_t>(rows * layout.groups()));
        reader.read_scales(first, std::as_writable_bytes(std::span(scales)));
      }
      std::fill(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(panel_bytes), std::byte{0});
      pack_panel(layout, rows_.data(), scales.data(), rows, bytes.data());
    }
  });
}

}  // namespace ptrt
