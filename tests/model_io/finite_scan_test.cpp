#include "model_io/file/finite_scan.h"

#include <cstring>

#include "kernels/cpu/weights/packed.h"
#include "model_fixture.h"
#include "model_io/file/tensor_copy.h"

namespace ptrt {
namespace {

constexpr std::uint16_t kHalfNan = 0x7E00, kHalfInfinity = 0x7C00, kBfloat16Infinity = 0xFF80;

StoredTensor tensor_of(DType dtype, std::vector<std::int64_t> shape, WeightLayout layout) {
  StoredTensor tensor;
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  tensor.layout = layout;
  return tensor;
}

// Bytes that hold no element which is not finite.
std::vector<std::byte> zeros(std::int64_t elements, DType dtype) {
  return std::vector<std::byte>(static_cast<std::size_t>(elements) * size_of(dtype));
}

void put(std::vector<std::byte>& rows, DType dtype, std::int64_t element, std::uint32_t bits) {
  std::memcpy(&rows[static_cast<std::size_t>(element) * size_of(dtype)], &bits, size_of(dtype));
}

std::vector<std::byte> packed(const PackedLayout& layout, std::int64_t count,
                              const std::vector<std::byte>& rows, const std::vector<std::uint16_t>& scales) {
  const auto panel_bytes = static_cast<std::size_t>(layout.panel_bytes());
  const auto row_bytes = static_cast<std::size_t>(layout.in) * size_of(layout.dtype);
  std::vector<std::byte> panels(static_cast<std::size_t>(count * layout.matrix_bytes()));
  for (std::int64_t p = 0; p < count * layout.panels(); ++p) {
    const std::int64_t out = p % layout.panels() * kPanelOuts, row = p / layout.panels() * layout.out + out;
    pack_panel(layout, &rows[static_cast<std::size_t>(row) * row_bytes],
               scales.empty() ? nullptr : &scales[static_cast<std::size_t>(row * layout.groups())],
               std::min(kPanelOuts, layout.out - out), &panels[static_cast<std::size_t>(p) * panel_bytes]);
  }
  return panels;
}

// In pieces, the last ones first.
void add_in_pieces(FiniteScan& scan, std::span<const std::byte> bytes, std::size_t piece) {
  for (std::size_t at = (bytes.size() - 1) / piece * piece;; at -= piece) {
    scan.add(at, bytes.subspan(at, std::min(piece, bytes.size() - at)));
    if (at == 0) return;
  }
}

struct Bad {
  DType dtype;
  std::uint32_t bits;
  const char* shown;
};

TEST(FiniteScan, FindsEveryPlaceInRowsAndPanels) {
  const std::vector<std::int64_t> shape{2, 37, 11};  // neither whole panels nor whole words
  for (const Bad& bad : {Bad{DType::float32, 0x7FC00000, "nan"},
                         {DType::float32, 0xFF800000, "-inf"},
                         {DType::float32, 0x7F800001, "nan"},
                         {DType::float16, kHalfInfinity, "inf"},
                         {DType::float16, 0x7C01, "nan"},
                         {DType::bfloat16, kBfloat16Infinity, "-inf"},
                         {DType::bfloat16, 0x7FC0, "nan"}}) {
    const PackedLayout layout{bad.dtype, shape[1], shape[2]};
    const StoredTensor in_rows = tensor_of(bad.dtype, shape, WeightLayout::rows),
                       in_panels = tensor_of(bad.dtype, shape, WeightLayout::panels);
    for (std::int64_t element = 0; element < 2 * 37 * 11; ++element) {
      std::vector<std::byte> rows = zeros(2 * 37 * 11, bad.dtype);
      put(rows, bad.dtype, element, bad.bits);
      const std::vector<std::int64_t> place{element / (37 * 11), element / 11 % 37, element % 11};
      FiniteScan plain(in_rows), panels(in_panels);
      plain.add(0, rows);
      panels.add(0, packed(layout, 2, rows, {}));
      ASSERT_EQ(plain.count(), 1);
      ASSERT_EQ(plain.first(), place);
      ASSERT_EQ(panels.count(), 1);
      ASSERT_EQ(panels.first(), place) << to_string(bad.dtype);
      expect_words(plain.describe(), {"1 element is not finite; the first is [", bad.shown});
    }
  }
}

TEST(FiniteScan, Float8AndItsScales) {
  const std::vector<std::int64_t> shape{2, 37, 11};
  const StoredTensor tensor = tensor_of(DType::float8_e4m3, shape, WeightLayout::rows);
  for (std::int64_t element = 0; element < 2 * 37 * 11; ++element)
    for (const std::uint32_t code : {0x7F, 0xFF}) {
      std::vector<std::byte> rows(2 * 37 * 11, std::byte{0x7E});
      put(rows, DType::float8_e4m3, element, code);
      FiniteScan scan(tensor);
      add_in_pieces(scan, rows, 64);
      ASSERT_EQ(scan.count(), 1);
      ASSERT_EQ(scan.first(),
                (std::vector<std::int64_t>{element / (37 * 11), element / 11 % 37, element % 11}));
      expect_words(scan.describe(), {"1 element is not finite; the first is [", "nan"});
    }
  for (std::size_t scale = 0; scale < 2 * 37; ++scale)
    for (const float bad : {NAN, INFINITY, -INFINITY, -1.0f, -0.0f}) {
      std::vector<float> scales(2 * 37, 0.1f);
      scales[scale] = bad;
      FiniteScan scan = FiniteScan::of_scales(tensor);
      scan.add(0, std::as_bytes(std::span(scales)));
      const auto at = static_cast<std::int64_t>(scale);
      ASSERT_EQ(scan.count(), 1) << bad;
      ASSERT_EQ(scan.first(), (std::vector<std::int64_t>{at / 37, at % 37, 0}));
      expect_words(scan.describe(), {"1 scale is negative or not finite"});
    }
}

TEST(FiniteScan, ScalesOfInt8) {
  const std::vector<std::int64_t> shape{2, 19, 70};  // three groups: one has no partner
  const StoredTensor in_rows = tensor_of(DType::int8, shape, WeightLayout::rows),
                     in_panels = tensor_of(DType::int8, shape, WeightLayout::panels);
  const PackedLayout layout{DType::int8, 19, 70};
  // Elements whose bytes would be NaNs as scales.
  std::vector<std::byte> rows(2 * 19 * 70, std::byte{0x7F});
  for (std::size_t scale = 0; scale < 2 * 19 * 3; ++scale)
    for (const std::uint16_t bits : {kHalfNan, kHalfInfinity, std::uint16_t{0xBC00}}) {
      std::vector<std::uint16_t> scales(2 * 19 * 3, 0x7BFF);
      scales[scale] = bits;
      FiniteScan plain = FiniteScan::of_scales(in_rows), panels(in_panels), elements(in_rows);
      plain.add(0, std::as_bytes(std::span(scales)));
      add_in_pieces(panels, packed(layout, 2, rows, scales), 1030);  // cuts lines of scales
      elements.add(0, rows);
      const auto at = static_cast<std::int64_t>(scale);
      const std::vector<std::int64_t> place{at / (19 * 3), at / 3 % 19, at % 3};
      ASSERT_EQ(plain.count(), 1);
      ASSERT_EQ(plain.first(), place);
      ASSERT_EQ(panels.count(), 1);
      ASSERT_EQ(panels.first(), place);
      EXPECT_EQ(elements.count(), 0);
      expect_words(plain.describe(), {"1 scale is negative or not finite"});
    }
}

TEST(FiniteScan, CountsAndTakesTheFirst) {
  const StoredTensor tensor = tensor_of(DType::bfloat16, {100, 100}, WeightLayout::rows);
  std::vector<std::byte> rows = zeros(10000, DType::bfloat16);
  for (const int element : {9999, 4242, 1023, 4243}) put(rows, DType::bfloat16, element, kBfloat16Infinity);
  FiniteScan scan(tensor);
  add_in_pieces(scan, rows, 512);
  EXPECT_EQ(scan.describe(), "4 elements are not finite; the first is [10, 23]: -inf");
  std::memset(rows.data(), 0xFF, rows.size());
  FiniteScan all(tensor), none(tensor);
  all.add(0, rows);
  EXPECT_EQ(all.count(), 10000);
  none.add(0, zeros(10000, DType::bfloat16));
  EXPECT_EQ(none.describe(), "");
}

// Quantising cannot keep what is not finite, not even in tensors that stay as they are.
TEST(FiniteScan, ACopyMayRefuse) {
  const TempFolder folder;
  const ModelConfig config = small_config();
  const std::string path = folder / "m.h5";
  {
    ModelWriter writer(path, config, false);
    for (const TensorSpec& spec : all_tensors(config)) {
      std::vector<std::byte> content = random_tensor(config, spec, 3, DType::float32);
      if (spec.role == WeightRole::embedding) put(content, DType::float32, 7 * 24 + 5, 0x7F800000);
      writer.write(spec, DType::float32, [&](std::int64_t first, std::span<std::byte> bytes) {
        std::memcpy(bytes.data(), &content[static_cast<std::size_t>(first) * 4], bytes.size());
      });
    }
    writer.commit();
  }
  const ModelFile model(path);
  ModelWriter writer(folder / "copy.h5", config, false);
  for (const TensorSpec& spec : all_tensors(config)) {
    const StoredTensor stored = model.stat(spec);
    const auto copy = [&](TensorCopy::NotFinite what) {
      return message_of([&] { TensorCopy(model, writer, what).copy(spec, stored, WeightLayout::rows); });
    };
    if (spec.role == WeightRole::embedding)
      expect_words(copy(TensorCopy::NotFinite::refuse), {"m.h5", "/shared/embedding", "[7, 5]: inf"});
    else
      EXPECT_EQ(copy(TensorCopy::NotFinite::refuse), "");
  }
}

}  // namespace
}  // namespace ptrt
