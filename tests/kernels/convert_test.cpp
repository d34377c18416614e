// Conversions of weights on every instruction set, against the same done one element at a time.
#include "kernels/convert.h"

#include <cstdint>
#include <limits>

#include "ops/fixtures/test_tensors.h"

namespace ptrt::testing {
namespace {

class Convert : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { set_simd_target(GetParam()); }
  void TearDown() override { set_simd_target(""); }
};
PTRT_EVERY_TARGET(Convert);

// Every 16-bit pattern and its neighbours in float32, so that each rounding has its ties.
std::vector<float> many_floats() {
  std::vector<float> values;
  for (std::uint32_t high = 0; high < 65536; high += 7)
    for (const std::uint32_t low : {0x0000u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu})
      values.push_back(std::bit_cast<float>(high << 16 | low));
  return values;
}

TEST_P(Convert, RoundsToBfloat16) {
  const std::vector<float> values = many_floats();
  std::vector<std::uint16_t> rounded(values.size());
  for (const std::size_t n : {values.size(), std::size_t{1}, std::size_t{15}, std::size_t{17}}) {
    rounded.assign(values.size(), 0xABCD);
    round_to_bfloat16(values.data(), static_cast<std::int64_t>(n), rounded.data());
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(rounded[i], i < n ? to_bfloat16(values[i]) : 0xABCD) << values[i];
  }
}

TEST_P(Convert, Widens) {
  std::vector<std::uint16_t> bits(65536);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
  std::vector<float> wide(bits.size());
  for (const DType type : {DType::float16, DType::bfloat16}) {
    widen(type, std::as_bytes(std::span(bits)).data(), 65536, wide.data());
    for (std::size_t i = 0; i < bits.size(); ++i) {
      const float expected = type == DType::float16 ? from_float16(bits[i]) : from_bfloat16(bits[i]);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(wide[i])) << i;
      } else {
        ASSERT_EQ(wide[i], expected) << i;
      }
    }
  }
}

std::int8_t nearest(float value, float scale) {
  if (scale == 0) return 0;
  return static_cast<std::int8_t>(std::nearbyint(std::clamp(value / scale, -127.0f, 127.0f)));
}

TEST_P(Convert, Quantises) {
  Random random(3);
  for (const std::size_t width : {1, 31, 32, 33, 70, 128, 1000})
    // From values whose scale is subnormal or 0 to the largest that there are.
    for (const float size : {1e-9f, 4e-6f, 1e-3f, 1.0f, 300.0f, kLargestInt8Weight}) {
      std::vector<float> row(width);
      for (float& value : row) value = size * random.uniform();
      row[width / 2] = size;
      row[width / 3] = -size;
      if (width > 40) std::fill_n(row.begin(), 32, 0.0f);
      std::vector<std::int8_t> q(width);
      std::vector<std::uint16_t> scales(static_cast<std::size_t>(int8_groups(static_cast<int>(width))));
      ASSERT_EQ(quantize_int8_row(row, q, scales), width);
      for (std::size_t g = 0; g < scales.size(); ++g) {
        float largest = 0;
        for (std::size_t i = 32 * g; i < std::min(width, 32 * g + 32); ++i)
          largest = std::max(largest, std::abs(row[i]));
        ASSERT_EQ(scales[g], to_float16(largest / 127.0f));
        for (std::size_t i = 32 * g; i < std::min(width, 32 * g + 32); ++i)
          ASSERT_EQ(q[i], nearest(row[i], from_float16(scales[g]))) << row[i] << " of " << size;
      }
    }
}

TEST_P(Convert, FindsWhatInt8CannotHold) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const std::size_t width : {5, 32, 70})
    for (std::size_t at = 0; at < width; ++at)
      for (const float bad : {kNaN, -kNaN, INFINITY, -INFINITY, 8.4e6f, -8.4e6f, 3e38f}) {
        std::vector<float> row(width, -1.0f);
        row[at] = bad;
        row[width - 1] = at == width - 1 ? bad : kNaN;  // the first counts
        std::vector<std::int8_t> q(width);
        std::vector<std::uint16_t> scales(3);
        ASSERT_EQ(quantize_int8_row(row, q, scales), at) << bad;
      }
}

}  // namespace
}  // namespace ptrt::testing
