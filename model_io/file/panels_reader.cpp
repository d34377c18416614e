#include "model_io/file/panels_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

PackedLayout layout_of(const std::vector<std::int64_t>& shape, DType dtype) {
  return {dtype, shape[shape.size() - 2], shape.back()};
}

// Whether a scale of an int8 panel is negative or not finite. Scales without a group are zero.
bool has_bad_scale(const std::byte* panel, std::int64_t panel_bytes) {
  bool bad = false;
  for (std::int64_t line = 0; line < panel_bytes; line += kGroupPair) {
    std::uint16_t scales[kScaleLine / 2];
    std::memcpy(scales, panel + line, sizeof(scales));
    for (const std::uint16_t bits : scales) bad |= bits >= kFirstBadScale;
  }
  return bad;
}

// Whole rows in memory, of which a range of columns is copied. All sizes are in bytes.
struct UnpackedRows {
  std::vector<std::byte> bytes;
  void copy(std::int64_t first, std::int64_t rows, std::size_t row, std::size_t column,
            std::span<std::byte>& out, std::size_t width) const {
    for (std::int64_t r = first; r < first + rows; ++r, out = out.subspan(width))
      std::memcpy(out.data(), &bytes[static_cast<std::size_t>(r) * row + column], width);
  }
};

}  // namespace

std::vector<std::int64_t> panels_shape(const std::vector<std::int64_t>& shape, DType dtype) {
  const PackedLayout layout = layout_of(shape, dtype);
  std::vector<std::int64_t> stored(shape.begin(), shape.end() - 2);
  stored.insert(stored.end(), {layout.panels(), layout.panel_bytes()});
  return stored;
}

PanelsReader::PanelsReader(const StoredTensor& stored, std::unique_ptr<DatasetReader> content)
    : TensorReader(stored, std::move(content), nullptr), layout_(layout_of(stored.shape, stored.dtype)) {
  PTRT_CHECK(stored.layout == WeightLayout::panels);
}

std::size_t PanelsReader::panel_at(std::int64_t row) const {
  const std::int64_t panel = row / layout_.out * layout_.panels() + row % layout_.out / kPanelOuts;
  return static_cast<std::size_t>(panel * layout_.panel_bytes());
}

// Panel by panel: the columns from a place on where a panel can be cut are read as a panel of their own.
void PanelsReader::unpack(std::int64_t first, std::int64_t count, Columns columns, Destination to) {
  const PanelColumn start = panel_column(layout_, columns.first);
  const auto skipped = static_cast<std::size_t>(columns.first - start.column);
  const PackedLayout part{layout_.dtype, layout_.out, columns.first + columns.count - start.column};
  const auto part_in = static_cast<std::size_t>(part.in),
             part_groups = static_cast<std::size_t>(part.groups());
  const auto width = static_cast<std::size_t>(columns.count), element = size_of(layout_.dtype);
  std::vector<std::byte> panel(static_cast<std::size_t>(part.panel_bytes()));
  UnpackedRows elements{std::vector<std::byte>(kPanelOuts * part_in * element)};
  std::vector<std::uint16_t> scales(layout_.dtype == DType::int8 ? kPanelOuts * part_groups : 0);
  UnpackedRows scale_rows{std::vector<std::byte>(scales.size() * sizeof(std::uint16_t))};
  while (count > 0) {
    const std::int64_t row = first % layout_.out, lane = row % kPanelOuts;
    const std::int64_t rows = std::min({kPanelOuts - lane, count, layout_.out - row});
    const std::size_t at = panel_at(first) + static_cast<std::size_t>(start.byte);
    content_->read_uncounted(at, panel);
    // Scales are in the panels of their elements, and count with those.
    if (!to.elements.empty()) count_panel(row, rows, columns, at, panel);
    unpack_panel(part, panel.data(), lane + rows, elements.bytes.data(), scales.data());
    if (!to.elements.empty())
      elements.copy(lane, rows, part_in * element, skipped * element, to.elements, width * element);
    if (!to.scales.empty()) {
      std::memcpy(scale_rows.bytes.data(), scales.data(), scale_rows.bytes.size());
      const std::size_t groups = static_cast<std::size_t>(int8_groups(columns.count));
      scale_rows.copy(lane, rows, part_groups * 2, skipped / kInt8Group * 2, to.scales, groups * 2);
    }
    first += rows;
    count -= rows;
  }
}

// Of rows [row, row + rows) of a matrix, all in one panel, of which `panel` was read at `at`. Where columns are
// cut within a word or a pair, its bytes are those of earlier columns, and the part that follows has read them
// too; where rows are cut within a panel, so is all of it.
void PanelsReader::count_panel(std::int64_t row, std::int64_t rows, Columns columns, std::size_t at,
                               std::span<const std::byte> panel) {
  const std::int64_t lane = row % kPanelOuts, end = columns.first + columns.count;
  const auto start = static_cast<std::size_t>(panel_column(layout_, columns.first).byte);
  const auto bytes_before = [&](std::int64_t column) {
    return static_cast<std::size_t>(PackedLayout{layout_.dtype, layout_.out, column}.panel_bytes());
  };
  const std::size_t of_earlier = bytes_before(columns.first) - start;
  if (lane == 0) content_->count(at + of_earlier, panel.subspan(of_earlier));
  const auto share = [&](std::uint64_t place, std::size_t skipped, std::size_t bytes) {
    const auto shared = panel.subspan(skipped, bytes);
    const std::uint32_t crc =
        crc32c_before(crc32c(0, shared), stored_.bytes - (at + skipped + shared.size()));
    const std::lock_guard lock(mutex_);
    shared_[place] ^= crc;
  };
  if (lane != 0 || (rows < kPanelOuts && row + rows < layout_.out)) {
    const std::lock_guard lock(mutex_);
    shared_[at] = crc32c(0, panel);
    return;
  }
  const auto cut = static_cast<std::size_t>(panel_column(layout_, end).byte);
  if (of_earlier > 0) share(static_cast<std::uint64_t>(columns.first), 0, of_earlier);
  if (end < layout_.in && bytes_before(end) > cut)
    share(static_cast<std::uint64_t>(end), cut - start, bytes_before(end) - cut);
}

std::vector<ReadContent> PanelsReader::contents() const {
  std::vector<ReadContent> all = TensorReader::contents();
  all.front().shared = shared_;
  return all;
}

void PanelsReader::read(std::int64_t first, std::span<std::byte> rows) {
  const auto count = static_cast<std::int64_t>(rows.size() / row_bytes());
  unpack(first, count, {0, layout_.in}, {rows, {}});
}

void PanelsReader::read_scales(std::int64_t first, std::span<std::byte> scales) {
  const auto count = static_cast<std::int64_t>(scales.size() / (row_groups() * sizeof(std::uint16_t)));
  read_scale_groups(first, count, 0, row_groups(), scales);
  check_scales(first, 0, row_groups(), scales);
}

void PanelsReader::read_columns(std::int64_t first, std::int64_t count, std::int64_t column,
                                std::int64_t columns, std::span<std::byte> out) {
  unpack(first, count, {column, columns}, {out, {}});
}

void PanelsReader::read_scale_groups(std::int64_t first, std::int64_t count, std::size_t group,
                                     std::size_t groups, std::span<std::byte> out) {
  const auto column = static_cast<std::int64_t>(group) * kInt8Group;
  const std::int64_t columns = std::min(static_cast<std::int64_t>(groups) * kInt8Group, layout_.in - column);
  unpack(first, count, {column, columns}, {{}, out});
}

std::optional<MappedWeight> PanelsReader::try_map(WeightLayout layout) {
  if (layout != WeightLayout::panels) return std::nullopt;
  mapped_ = content_->map_with_file();
  if (mapped_ == nullptr) return std::nullopt;
  return MappedWeight{mapped_, stored_.bytes};
}

void PanelsReader::check_mapped(std::int64_t first, std::int64_t rows) {
  const std::int64_t panels = (rows + kPanelOuts - 1) / kPanelOuts;
  const auto panel_bytes = static_cast<std::size_t>(layout_.panel_bytes());
  const std::byte* panel = mapped_.get() + panel_at(first);
  content_->add_checksum(panel_at(first), {panel, static_cast<std::size_t>(panels) * panel_bytes});
  if (layout_.dtype != DType::int8) return;
  for (std::int64_t row = 0; row < rows; row += kPanelOuts, panel += panel_bytes) {
    if (!has_bad_scale(panel, layout_.panel_bytes())) continue;
    const auto here = static_cast<std::size_t>(std::min(kPanelOuts, rows - row));
    std::vector<std::byte> scales(here * row_groups() * sizeof(std::uint16_t));
    read_scales(first + row, scales);
    throw_bad_input("{}: dataset {}: scales beside the matrix, from row {} on, are negative or not finite",
                    stored_.file, stored_.name, first + row);
  }
}

}  // namespace ptrt
