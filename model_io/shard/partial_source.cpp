#include "model_io/shard/partial_source.h"

#include <algorithm>

namespace ptrt {

template <typename Body>
void PartialSource::for_runs(std::int64_t first, std::span<std::byte> to, std::size_t row_bytes,
                             const Body& body) const {
  while (!to.empty()) {
    const std::int64_t matrix = first / part_.rows, row = first % part_.rows;
    const auto left = static_cast<std::int64_t>(to.size() / row_bytes);
    const std::int64_t count = std::min(left, part_.rows - row);
    const std::size_t bytes = static_cast<std::size_t>(count) * row_bytes;
    body(matrix * whole_rows_ + part_.first_row + row, count, to.first(bytes));
    to = to.subspan(bytes);
    first += count;
  }
}

void PartialSource::read(std::int64_t first, std::span<std::byte> rows) {
  const std::size_t row_bytes = static_cast<std::size_t>(part_.columns) * size_of(whole_.dtype());
  for_runs(first, rows, row_bytes, [&](std::int64_t from, std::int64_t count, std::span<std::byte> to) {
    if (has_whole_rows()) return whole_.read(from, to);
    whole_.read_columns(from, count, part_.first_column, part_.columns, to);
  });
}

void PartialSource::read_scales(std::int64_t first, std::span<std::byte> scales) {
  const std::size_t row_bytes = row_scale_bytes(whole_.dtype(), part_.columns);
  for_runs(first, scales, row_bytes, [&](std::int64_t from, std::int64_t count, std::span<std::byte> to) {
    if (has_whole_rows()) return whole_.read_scales(from, to);
    whole_.read_scale_columns(from, count, part_.first_column, part_.columns, to);
  });
}

}  // namespace ptrt
