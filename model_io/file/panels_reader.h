// Reads a tensor that is stored in the panels of kernels/cpu/weights/packed.h. The CPU's products
// use it as it is; others read its rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "kernels/cpu/weights/packed.h"
#include "model_io/file/tensor_reader.h"

namespace ptrt {

class PanelsReader final : public TensorReader {
 public:
  PanelsReader(const StoredTensor& stored, std::unique_ptr<DatasetReader> content);

  // A panel counts with its first row, and a word or a pair of groups with its first column.
  void read(std::int64_t first, std::span<std::byte> rows) override;
  // Throws bad_input on a scale that is negative or not finite.
  void read_scales(std::int64_t first, std::span<std::byte> scales) override;
  void read_columns(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t columns,
                    std::span<std::byte> out) override;
  std::optional<MappedWeight> try_map(WeightLayout layout) override;
  std::vector<ReadContent> contents() const override;
  // Throws bad_input on a scale that is negative or not finite.
  void check_mapped(std::int64_t first, std::int64_t rows) override;

 private:
  struct Columns {
    std::int64_t first, count;
  };
  // Where the elements of the rows go, and their scales (int8); either may be empty.
  struct Destination {
    std::span<std::byte> elements, scales;
  };

  void read_scale_groups(std::int64_t first, std::int64_t count, std::size_t group, std::size_t groups,
                         std::span<std::byte> out) override;
  void unpack(std::int64_t first, std::int64_t count, Columns columns, Destination to);
  void count_panel(std::int64_t row, std::int64_t rows, Columns columns, std::size_t at,
                   std::span<const std::byte> panel);
  std::size_t panel_at(std::int64_t row) const;  // of the tensor's rows; in bytes

  PackedLayout layout_;  // of one matrix
  std::shared_ptr<const std::byte> mapped_;
  std::mutex mutex_;                               // guards:
  std::map<std::uint64_t, std::uint32_t> shared_;  // ReadContent::shared; by byte, or by column between parts
};

// Shape of the dataset, in bytes, of a tensor of that shape in panels: [.., panels, bytes of a
// panel].
std::vector<std::int64_t> panels_shape(const std::vector<std::int64_t>& shape, DType dtype);

}  // namespace ptrt
