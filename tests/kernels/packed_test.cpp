// Panels: what is unpacked is what was packed, whole or from a column on.
#include "kernels/cpu/weights/packed.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/int8.h"

namespace ptrt {
namespace {

struct Matrix {
  std::vector<std::byte> elements;
  std::vector<std::uint16_t> scales;  // [rows][groups]
};

Matrix random_rows(const PackedLayout& layout, std::int64_t rows) {
  std::mt19937 random(static_cast<unsigned>(layout.in * 31 + rows));
  Matrix m;
  m.elements.resize(static_cast<std::size_t>(rows * layout.in) * size_of(layout.dtype));
  for (std::byte& b : m.elements) b = static_cast<std::byte>(random());
  if (layout.dtype == DType::int8)
    for (std::int64_t i = 0; i < rows * layout.groups(); ++i)
      m.scales.push_back(static_cast<std::uint16_t>(random()));
  return m;
}

Matrix unpack(const PackedLayout& layout, const std::byte* panel, std::int64_t rows) {
  Matrix m = random_rows(layout, rows);  // of the right size, but nothing that could be expected
  std::ranges::fill(m.elements, std::byte{0xEE});
  std::ranges::fill(m.scales, std::uint16_t{0xEEEE});
  unpack_panel(layout, panel, rows, m.elements.data(), m.scales.data());
  return m;
}

// Columns [first, first + count) of the rows.
Matrix columns_of(const Matrix& m, const PackedLayout& layout, std::int64_t rows, std::int64_t first,
                  std::int64_t count) {
  const auto element = static_cast<std::int64_t>(size_of(layout.dtype));
  Matrix part;
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto from = m.elements.begin() + (r * layout.in + first) * element;
    part.elements.insert(part.elements.end(), from, from + count * element);
    if (layout.dtype != DType::int8) continue;
    const auto scale = m.scales.begin() + r * layout.groups() + first / kInt8Group;
    part.scales.insert(part.scales.end(), scale, scale + int8_groups(count));
  }
  return part;
}

class Panels : public testing::TestWithParam<DType> {};

TEST_P(Panels, UnpackToWhatWasPacked) {
  for (const std::int64_t in : {1, 2, 3, 31, 32, 33, 64, 65, 96, 130, 256})
    for (const std::int64_t rows : {1, 7, 16}) {
      SCOPED_TRACE(testing::Message() << in << " columns, " << rows << " rows");
      const PackedLayout layout{GetParam(), rows, in};
      const Matrix m = random_rows(layout, rows);
      std::vector<std::byte> panel(static_cast<std::size_t>(layout.panel_bytes()));
      pack_panel(layout, m.elements.data(), m.scales.data(), rows, panel.data());
      const Matrix whole = unpack(layout, panel.data(), rows);
      EXPECT_EQ(whole.elements, m.elements);
      EXPECT_EQ(whole.scales, m.scales);
      for (const std::int64_t column : {std::int64_t{1}, in / 3, in / 2, in - 1}) {
        if (column >= in) continue;
        const PanelColumn start = panel_column(layout, column);
        ASSERT_LE(start.column, column);
        ASSERT_LT(column - start.column, 64);
        const PackedLayout rest{layout.dtype, rows, in - start.column};
        ASSERT_LE(start.byte + rest.panel_bytes(), layout.panel_bytes());
        const Matrix part = unpack(rest, panel.data() + start.byte, rows);
        const Matrix expected = columns_of(m, layout, rows, start.column, rest.in);
        EXPECT_EQ(part.elements, expected.elements);
        EXPECT_EQ(part.scales, expected.scales);
      }
    }
}

INSTANTIATE_TEST_SUITE_P(Types, Panels,
                         testing::Values(DType::float32, DType::float16, DType::bfloat16, DType::int8),
                         [](const auto& p) { return std::string(to_string(p.param)); });

}  // namespace
}  // namespace ptrt
