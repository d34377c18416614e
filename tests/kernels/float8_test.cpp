// float8 (e4m3): every code against the definition in double, rounding against a search among all codes, rows as they
// are written, and rows as they are widened.
#include "kernels/float8.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/convert.h"
#include "kernels/cpu/weights/widened_float8.h"
#include "ops/fixtures/test_tensors.h"

namespace ptrt::testing {
namespace {

// The definition: (-1)^s · 2^(e - 7) · (1 + f / 8), with e = 0: (-1)^s · 2^-6 · f / 8.
double defined(int code) {
  const int exponent = code >> 3 & 15, fraction = code & 7;
  const double sign = code < 128 ? 1 : -1;
  return exponent == 0 ? sign * std::pow(2.0, -6) * (fraction / 8.0)
                       : sign * std::pow(2.0, exponent - 7) * (1 + fraction / 8.0);
}

// The codes of numbers that are not negative are in ascending order; the lower neighbour wins unless the upper one is
// nearer, or as near and even.
int nearest(double magnitude) {
  int best = 0;
  for (int code = 1; code < 0x7F; ++code) {
    const double before = std::abs(defined(best) - magnitude), now = std::abs(defined(code) - magnitude);
    if (now < before || (now == before && code % 2 == 0)) best = code;
  }
  return best;
}

TEST(Float8, EveryCodeIsWhatTheDefinitionSays) {
  for (int code = 0; code < 256; ++code) {
    const float value = from_float8(static_cast<std::uint8_t>(code));
    EXPECT_EQ(std::signbit(value), code >= 128) << code;
    if (code % 128 == 127) {
      EXPECT_TRUE(std::isnan(value)) << code;
      EXPECT_TRUE(is_float8_nan(static_cast<std::uint8_t>(code)));
    } else {
      EXPECT_EQ(static_cast<double>(value), defined(code)) << code;
      EXPECT_FALSE(is_float8_nan(static_cast<std::uint8_t>(code)));
    }
    EXPECT_EQ(to_float8(value), code);
  }
  EXPECT_EQ(from_float8(0x7E), 448.0f);
  EXPECT_EQ(from_float8(0x01), 0x1p-9f);
}

TEST(Float8, RoundsToTheNearestCode) {
  Random random(1);
  std::vector<float> values;
  for (int code = 0; code < 0x7E; ++code) {
    const auto low = static_cast<float>(defined(code)), high = static_cast<float>(defined(code + 1));
    const float middle = low + (high - low) / 2;  // exact: the tie
    for (const float value : {low, high, middle})
      for (const float end : {0.0f, value, 1000.0f}) values.push_back(std::nextafter(value, end));
    for (int i = 0; i < 50; ++i) values.push_back(random.uniform(low, high));
  }
  for (int exponent = -149; exponent < 9; ++exponent) values.push_back(std::ldexp(1.0f, exponent));
  for (const float value : values) {
    const int expected = nearest(double{value});
    ASSERT_EQ(to_float8(value), expected) << value;
    ASSERT_EQ(to_float8(-value), expected + 128) << -value;
  }
}

TEST(Float8, TiesGoToTheEvenCode) {
  EXPECT_EQ(to_float8(0x1p-10f), 0x00);           // between 0 and 2^-9
  EXPECT_EQ(to_float8(0x3p-10f), 0x02);           // between 1 and 2 times 2^-9
  EXPECT_EQ(to_float8(0xFp-10f), 0x08);           // the largest subnormal and the smallest normal
  EXPECT_EQ(to_float8(17.0f), to_float8(16.0f));  // 16, 18
  EXPECT_EQ(to_float8(19.0f), to_float8(20.0f));  // 18, 20
  EXPECT_EQ(to_float8(std::nextafter(17.0f, 18.0f)), to_float8(18.0f));
  EXPECT_EQ(to_float8(432.0f), 0x7E);  // 416, 448
}

TEST(Float8, SaturatesAndKeepsNaN) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float value : {449.0f, 464.0f, 480.0f, 1e30f, std::numeric_limits<float>::max(), kInfinity}) {
    EXPECT_EQ(to_float8(value), 0x7E) << value;
    EXPECT_EQ(to_float8(-value), 0xFE) << value;
  }
  EXPECT_EQ(to_float8(std::nanf("")), 0x7F);
  EXPECT_EQ(to_float8(-std::nanf("")), 0xFF);
  EXPECT_EQ(to_float8(0.0f), 0x00);
  EXPECT_EQ(to_float8(-0.0f), 0x80);
}

TEST(Float8, KnowsScales) {
  for (const float good : {0.0f, 1e-45f, 0x1p-126f, 0.1f, 1.0f, 0x1p119f})
    EXPECT_TRUE(is_float8_scale(good)) << good;
  for (const float bad :
       {-0.0f, -1.0f, std::nextafter(0x1p119f, INFINITY), INFINITY, -INFINITY, std::nanf(""), -std::nanf("")})
    EXPECT_FALSE(is_float8_scale(bad)) << bad;
}

// bfloat16 has 8 bits of fraction, the hidden one included, and normal numbers from 2^-126 on.
bool bfloat16_holds(double value) {
  int exponent = 0;
  const double fraction = std::frexp(value, &exponent) * 256;
  return value == 0 || (fraction == std::nearbyint(fraction) && exponent > -126 && exponent <= 128);
}

TEST(Float8, KnowsWhatBfloat16Holds) {
  std::vector<float> scales{0.0f, 0.75f, 1.5f, 3e-5f, std::nextafter(1.0f, 2.0f)};
  for (int exponent = -140; exponent <= 119; ++exponent) scales.push_back(std::ldexp(1.0f, exponent));
  for (const float scale : scales) {
    bool all = true;
    for (int code = 0; code < 0x7F; ++code) all &= bfloat16_holds(defined(code) * double{scale});
    // 0.75 and 1.5 have too few bits to matter, but are no powers of two.
    EXPECT_EQ(is_exact_in_bfloat16(scale), all && scale != 0.75f && scale != 1.5f) << scale;
  }
  EXPECT_EQ(widened_float8_type(std::vector{1.0f, 0.25f, 0.0f}), DType::bfloat16);
  EXPECT_EQ(widened_float8_type(std::vector{1.0f, 0.3f, 0.0f}), DType::float32);
}

TEST(Float8, RowsTakeTheSmallestPowerOfTwoThatFits) {
  Random random(2);
  std::vector<float> sizes{
      448,    std::nextafter(448.0f, 500.0f), std::nextafter(448.0f, 0.0f), 1, 7, 1e-3f, 1e20f, 1e-38f,
      1e-44f, kLargestFloat8Weight,           kSmallestFloat8Power * 448};
  for (int i = 0; i < 100; ++i)
    sizes.push_back(std::ldexp(1 + random.uniform(0, 1), random.below(200) - 100));
  for (const float size : sizes) {
    std::vector<float> row(37);
    for (float& value : row) value = size * random.uniform();
    row[11] = -size;
    std::vector<std::uint8_t> codes(row.size());
    float scale = -1;
    ASSERT_EQ(quantize_float8_row(row, codes, scale), row.size());
    int exponent = 0;
    EXPECT_EQ(std::frexp(scale, &exponent), 0.5f) << size;
    EXPECT_LE(double{size} / double{scale}, 448) << size;
    EXPECT_TRUE(double{size} / (double{scale} / 2) > 448 || scale == 0x1p-117f) << size;
    for (std::size_t i = 0; i < row.size(); ++i)
      ASSERT_EQ(codes[i],
                nearest(std::abs(double{row[i]}) / double{scale}) + (std::signbit(row[i]) ? 128 : 0))
          << row[i] << " of " << size;
  }
}

TEST(Float8, RowsOfZerosHaveScaleOne) {
  const std::vector<float> row{0.0f, -0.0f, 0.0f};
  std::vector<std::uint8_t> codes(3, 9);
  float scale = 0;
  ASSERT_EQ(quantize_float8_row(row, codes, scale), 3U);
  EXPECT_EQ(scale, 1.0f);
  EXPECT_EQ(codes, (std::vector<std::uint8_t>{0, 0x80, 0}));
}

TEST(Float8, FindsWhatItCannotHold) {
  for (const float bad :
       {std::nanf(""), INFINITY, -INFINITY, std::nextafter(kLargestFloat8Weight, INFINITY), -3.4e38f}) {
    std::vector<float> row(9, kLargestFloat8Weight);
    row[5] = bad;
    row[8] = std::nanf("");  // the first counts
    std::vector<std::uint8_t> codes(row.size());
    float scale = 0;
    EXPECT_EQ(quantize_float8_row(row, codes, scale), 5U) << bad;
  }
}

TEST(Float8Rows, NameTheElementThatFloat8CannotHold) {
  const WeightSpec stack{"/some/experts", WeightRole::matrix, DType::float32, 3, 4, 40};
  std::vector<float> rows(2 * 40, 1.0f);
  rows[40 + 33] = INFINITY;  // of row 9 where the first is row 8: matrix 2, out 1
  Float8Rows float8;
  try {
    float8.quantize(stack, 8, std::as_bytes(std::span(rows)));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input);
    for (const char* word : {"/some/experts", "[2, 1, 33]", "inf", "float8"})
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
  }
}

class Widened : public ::testing::Test {
 protected:
  // 4 rows of 70 codes, all but NaN, with these scales.
  explicit Widened(std::vector<float> scales = {1.0f, 0x1p-30f, 0.0f, 0x1p7f}) : scales_(std::move(scales)) {
    for (std::size_t i = 0; i < codes_.size(); ++i)
      codes_[i] = static_cast<std::byte>(is_float8_nan(static_cast<std::uint8_t>(i)) ? 0 : i);
  }
  float expected(std::size_t i) const {
    return static_cast<float>(defined(static_cast<int>(codes_[i])) * double{scales_[i / 70]});
  }
  std::vector<std::byte> read(DType type) {
    WeightSpec spec{"w", WeightRole::matrix, DType::float8_e4m3, 1, 4, 70};
    spec.widened = type;
    FromMemory source(codes_, 70, std::as_bytes(std::span(scales_)), sizeof(float));
    WidenedFloat8 wide(spec, source);
    EXPECT_EQ(widened(spec).dtype, type);
    std::vector<std::byte> rows(codes_.size() * size_of(type));
    const std::size_t half = rows.size() / 2;
    wide.read(2, std::span(rows).subspan(half));
    wide.read(0, std::span(rows).first(half));
    return rows;
  }

  std::vector<std::byte> codes_ = std::vector<std::byte>(280);
  std::vector<float> scales_;
};

TEST_F(Widened, HasTheSameValuesInBfloat16) {
  const std::vector<std::byte> rows = read(DType::bfloat16);
  for (std::size_t i = 0; i < 280; ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, &rows[2 * i], 2);
    ASSERT_EQ(from_bfloat16(bits), expected(i)) << i;
  }
}

TEST_F(Widened, IsRoundedOnceInFloat32) {
  scales_ = {0.3f, 1e-40f, 0.0f, 0x1p119f};
  const std::vector<std::byte> rows = read(DType::float32);
  for (std::size_t i = 0; i < 280; ++i) {
    float value = 0;
    std::memcpy(&value, &rows[4 * i], 4);
    ASSERT_EQ(value, expected(i)) << i;  // the product is exact in double
  }
}

TEST_F(Widened, RefusesAScaleThatDoesNotFitItsType) {
  scales_[1] = 0.3f;
  try {
    read(DType::bfloat16);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input);
    EXPECT_NE(std::string(error.what()).find("w: row 1"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace ptrt::testing
