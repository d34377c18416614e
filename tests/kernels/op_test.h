// What the op tests share: one test body runs on every backend (the scalar reference, and the CPU backend on
// every instruction set this machine has) and compares with a float64 computation written in the test.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "kernels/backend.h"
#include "kernels/cpu/reference_backend.h"
#include "kernels/cpu/simd_target.h"

namespace ptrt::testing {

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  float uniform(float low = -1, float high = 1) {
    return std::uniform_real_distribution<float>(low, high)(engine_);
  }
  std::int32_t below(std::int32_t n) {
    return std::uniform_int_distribution<std::int32_t>(0, n - 1)(engine_);
  }
  std::mt19937& engine() { return engine_; }

 private:
  std::mt19937 engine_;
};

// An activation of exactly the tensor's size, so that AddressSanitizer sees a step over its end.
struct Activation {
  Activation(std::int64_t tracks, std::int64_t rows, std::int64_t width)
      : values(static_cast<std::size_t>(tracks * rows * width)),
        tensor{values.data(), tracks, rows, width, rows * width} {}
  Activation(std::int64_t tracks, std::int64_t rows, std::int64_t width, Random& random)
      : Activation(tracks, rows, width) {
    for (float& value : values) value = random.uniform();
  }
  Activation(const Activation& other) : values(other.values), tensor(other.tensor) {
    tensor.data = values.data();
  }
  Activation& operator=(const Activation&) = delete;

  float at(std::int64_t track, std::int64_t row, std::int64_t i) const { return tensor.row(track, row)[i]; }

  std::vector<float> values;
  Tensor tensor;
};

// One weight a track with random elements; `value` gives them in float64.
// A weight whose content a function fills in one piece.
class FromFunction final : public WeightSource {
 public:
  explicit FromFunction(std::function<void(std::span<std::byte>)> fill) : fill_(std::move(fill)) {}
  void read(std::int64_t, std::span<std::byte> rows) override { fill_(rows); }
  void read_scales(std::int64_t, std::span<std::byte>) override { throw_failure("no scales"); }

 private:
  std::function<void(std::span<std::byte>)> fill_;
};

class RandomWeights {
 public:
  RandomWeights(DType dtype, std::int64_t tracks, std::int64_t count, std::int64_t out, std::int64_t in,
                Random& random) {
    for (std::int64_t t = 0; t < tracks; ++t) {
      Weight w{nullptr, dtype, count, out, in};
      bytes_.emplace_back(static_cast<std::size_t>(count * out * in) * size_of(dtype));
      values_.emplace_back();
      for (std::int64_t i = 0; i < count * out * in; ++i) {
        const float value = round_to(dtype, random.uniform());
        values_.back().push_back(double{value});
        store(dtype, value, bytes_.back().data() + static_cast<std::size_t>(i) * size_of(dtype));
      }
      w.data = bytes_.back().data();
      tracks_.push_back(w);
    }
  }
  const TrackWeights& tracks() const { return tracks_; }
  double value(std::int64_t track, std::int64_t row, std::int64_t column) const {
    const auto t = static_cast<std::size_t>(track);
    return values_[t][static_cast<std::size_t>(row * tracks_[t].in + column)];
  }

 private:
  // Values in [-1, 1] that the type holds exactly.
  static float round_to(DType dtype, float value) {
    if (dtype == DType::bfloat16) return std::round(value * 128) / 128;
    if (dtype == DType::float16) return std::round(value * 512) / 512;
    return value;
  }
  static void store(DType dtype, float value, std::byte* to) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    std::uint16_t half = static_cast<std::uint16_t>(bits >> 16);
    if (dtype == DType::float16) {
      const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
      half = static_cast<std::uint16_t>((bits >> 31) << 15 |
                                        (magnitude == 0 ? 0 : (magnitude >> 13) - (112u << 10)));
    }
    if (dtype == DType::float32) {
      std::memcpy(to, &value, sizeof(value));
    } else {
      std::memcpy(to, &half, sizeof(half));
    }
  }

  std::vector<std::vector<std::byte>> bytes_;
  std::vector<std::vector<double>> values_;
  TrackWeights tracks_;
};

// |actual − expected| is within `tolerance` of the larger of 1 and |expected|.
inline void expect_close(double actual, double expected, double tolerance, const std::string& where) {
  ASSERT_NEAR(actual, expected, tolerance * std::max(1.0, std::abs(expected))) << where;
}

inline bool same_bits(const float* a, const float* b, std::int64_t n) {
  return std::memcmp(a, b, static_cast<std::size_t>(n) * sizeof(float)) == 0;
}

inline const std::string kReference = "reference";

inline std::vector<std::string> all_backends() {
  std::vector<std::string> names = simd_targets();
  names.push_back(kReference);
  return names;
}

inline std::string param_name(const ::testing::TestParamInfo<std::string>& info) {
  return info.param;
}

// The parameter names a backend; fixed to its instruction set while the test runs.
class OpTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!is_reference()) set_simd_target(GetParam());
  }
  void TearDown() override { set_simd_target(""); }
  bool is_reference() const { return GetParam() == kReference; }
  std::unique_ptr<Backend> make_backend(int threads = 2) const {
    if (is_reference()) return std::make_unique<ReferenceBackend>();
    return make_cpu_backend({.threads = threads});
  }
};

// For properties that hold for the instruction sets of the CPU backend (bits that do not hang on batch or
// threads).
class CpuOpTest : public OpTest {};

#define PTRT_EVERY_BACKEND(suite) \
  INSTANTIATE_TEST_SUITE_P(Every, suite, ::testing::ValuesIn(all_backends()), param_name)
#define PTRT_EVERY_TARGET(suite) \
  INSTANTIATE_TEST_SUITE_P(Every, suite, ::testing::ValuesIn(simd_targets()), param_name)

}  // namespace ptrt::testing
