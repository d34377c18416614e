#include "model_io/shard/random_init.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <tuple>

#include "model_fixture.h"

namespace ptrt {
namespace {

template <typename Element>
std::vector<Element> elements_of(const std::vector<std::byte>& bytes) {
  std::vector<Element> elements(bytes.size() / sizeof(Element));
  std::memcpy(elements.data(), bytes.data(), bytes.size());
  return elements;
}

double from_bfloat16(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

double from_float16(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

// No neighbour of `bits` is nearer to `value`, and of two equally near ones it is the even.
void expect_nearest(double value, std::uint16_t bits, double (*decode)(std::uint16_t)) {
  const double error = std::abs(decode(bits) - value);
  for (const int step : {-1, 1}) {
    if ((bits & 0x7fff) == 0 && step < 0) continue;
    const double other = std::abs(decode(static_cast<std::uint16_t>(bits + step)) - value);
    EXPECT_TRUE(error < other || (error == other && (bits & 1) == 0)) << value << " " << bits;
  }
}

const TensorSpec kMatrix{"/tracks/00/layers/000/wq", {512, 1000}, WeightRole::matrix};

TEST(RandomInit, LooksNormal) {
  const ModelConfig config = small_config();
  const auto values = elements_of<float>(random_tensor(config, kMatrix, 1, DType::float32));
  double sum = 0, squares = 0, largest = 0;
  std::size_t within = 0;
  const double deviation = 1 / std::sqrt(1000.0);
  for (const float value : values) {
    sum += value;
    squares += static_cast<double>(value) * value;
    largest = std::max(largest, std::abs(static_cast<double>(value)));
    within += std::abs(value) < deviation;
  }
  const auto n = static_cast<double>(values.size());
  EXPECT_NEAR(sum / n, 0, 5 * deviation / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(squares / n), deviation, 0.01 * deviation);
  EXPECT_LT(largest, 3.5 * deviation);
  EXPECT_NEAR(static_cast<double>(within) / n, 0.68, 0.02);
}

TEST(RandomInit, IsScaledByWhatTheMatrixDoes) {
  const ModelConfig config = small_config();  // of 3 layers
  TensorSpec down = kMatrix;
  down.path = "/tracks/00/layers/000/experts/w_down";
  double squares = 0;
  for (const float value : elements_of<float>(random_tensor(config, down, 1, DType::float32)))
    squares += static_cast<double>(value) * value;
  EXPECT_NEAR(std::sqrt(squares / 512000), 1 / std::sqrt(6000.0), 2e-4);
  const TensorSpec norm{"/shared/final_norm", {24}, WeightRole::vector};
  EXPECT_EQ(elements_of<float>(random_tensor(config, norm, 9, DType::float32)), std::vector<float>(24, 1.0f));
  EXPECT_EQ(elements_of<std::uint16_t>(random_tensor(config, norm, 9, DType::bfloat16))[23], 0x3f80);
  EXPECT_EQ(elements_of<std::uint16_t>(random_tensor(config, norm, 9, DType::float16))[23], 0x3c00);
}

TEST(RandomInit, BiasesAreNotZero) {
  const ModelConfig config = small_config();  // of 3 layers
  for (const auto& [id, name, deviation] : {std::tuple{TensorId::bq, "bq", 0.5},
                                            {TensorId::bk, "bk", 0.5},
                                            {TensorId::bv, "bv", 0.5},
                                            {TensorId::bo, "bo", 0.5 / std::sqrt(6.0)}}) {
    const TensorSpec bias{std::string("/tracks/00/layers/000/") + name, {20000}, WeightRole::vector, id};
    double squares = 0;
    for (const float value : elements_of<float>(random_tensor(config, bias, 1, DType::float32)))
      squares += static_cast<double>(value) * value;
    EXPECT_NEAR(std::sqrt(squares / 20000), deviation, 0.02 * deviation) << name;
  }
}

TEST(RandomInit, RoundsToNearest) {
  const ModelConfig config = small_config();
  TensorSpec wide = kMatrix;  // so small that halves are subnormal
  wide.shape = {1, 200000};
  for (const TensorSpec& spec : {kMatrix, wide}) {
    TensorSpec scaled = spec;
    const auto exact = elements_of<float>(random_tensor(config, scaled, 5, DType::float32));
    const auto brain = elements_of<std::uint16_t>(random_tensor(config, scaled, 5, DType::bfloat16));
    const auto half = elements_of<std::uint16_t>(random_tensor(config, scaled, 5, DType::float16));
    for (std::size_t i = 0; i < exact.size(); i += 37) {
      expect_nearest(exact[i], brain[i], from_bfloat16);
      expect_nearest(exact[i], half[i], from_float16);
    }
  }
}

TEST(RandomInit, HangsOnSeedPathAndIndexAlone) {
  const ModelConfig config = small_config();
  const auto whole = random_tensor(config, kMatrix, 1, DType::bfloat16);
  std::vector<std::byte> part(2 * 777);
  random_elements(config, kMatrix, 1, DType::bfloat16, 12345, part);
  EXPECT_EQ(std::memcmp(part.data(), whole.data() + 2 * 12345, part.size()), 0);
  EXPECT_NE(random_tensor(config, kMatrix, 2, DType::bfloat16), whole);
  TensorSpec other = kMatrix;
  other.path = "/tracks/01/layers/000/wq";
  EXPECT_NE(random_tensor(config, other, 1, DType::bfloat16), whole);
}

// The same seed must give the same model in every version of the program.
TEST(RandomInit, StaysAsItIs) {
  const auto values = elements_of<float>(random_tensor(small_config(), kMatrix, 42, DType::float32));
  EXPECT_EQ(values[0], -0x1.b968dcp-7f);
  EXPECT_EQ(values[511999], 0x1.bb68a6p-6f);
}

}  // namespace
}  // namespace ptrt
