// Random activations and weights with their values in float64, for tests of ops and of what ops are made of.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/error.h"
#include "kernels/base/scalar_types.h"
#include "kernels/cpu/simd/simd_target.h"
#include "kernels/int8.h"
#include "kernels/make_cpu_backend.h"

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

// An activation in the host's memory, of exactly the tensor's size, so that AddressSanitizer sees an access
// past its end.
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

// A weight whose content a function fills, piece by piece.
class FromFunction final : public WeightSource {
 public:
  explicit FromFunction(std::function<void(std::span<std::byte>)> fill) : fill_(std::move(fill)) {}
  void read(std::int64_t, std::span<std::byte> rows) override { fill_(rows); }
  void read_scales(std::int64_t, std::span<std::byte>) override { throw_failure("no scales"); }

 private:
  std::function<void(std::span<std::byte>)> fill_;
};

// A weight whose rows lie in memory, as a file would hold them. Any thread may read each of them, once.
class FromMemory final : public WeightSource {
 public:
  FromMemory(std::span<const std::byte> rows, std::size_t row_bytes, std::span<const std::byte> scales = {},
             std::size_t row_scale_bytes = 0)
      : rows_(rows),
        scales_(scales),
        row_bytes_(row_bytes),
        row_scale_bytes_(row_scale_bytes),
        reads_(rows.size() / row_bytes) {}
  void read(std::int64_t first, std::span<std::byte> rows) override {
    for (std::size_t row = 0; row < rows.size() / row_bytes_; ++row)
      EXPECT_EQ(reads_[static_cast<std::size_t>(first) + row]++, 0) << "row " << first << " + " << row;
    copy(rows_, static_cast<std::size_t>(first) * row_bytes_, rows);
    bytes_read_ += rows.size();
  }
  void read_scales(std::int64_t first, std::span<std::byte> scales) override {
    copy(scales_, static_cast<std::size_t>(first) * row_scale_bytes_, scales);
  }
  std::size_t bytes_read() const { return bytes_read_; }

 private:
  static void copy(std::span<const std::byte> from, std::size_t at, std::span<std::byte> to) {
    const auto piece = from.subspan(at, to.size());
    std::copy(piece.begin(), piece.end(), to.begin());
  }

  std::span<const std::byte> rows_, scales_;
  std::size_t row_bytes_, row_scale_bytes_;
  std::vector<std::atomic<int>> reads_;  // of each row
  std::atomic<std::size_t> bytes_read_ = 0;
};

// One weight per track with random elements: `value` gives them in float64, `load` as a backend keeps them,
// `tracks` as rows in memory.
class RandomWeights {
 public:
  RandomWeights(DType dtype, std::int64_t tracks, std::int64_t count, std::int64_t out, std::int64_t in,
                Random& random, float size = 1) {
    for (std::int64_t t = 0; t < tracks; ++t) {
      rows_.emplace_back();
      scales_.emplace_back();
      values_.emplace_back();
      std::vector<float> row(static_cast<std::size_t>(in));
      for (std::int64_t r = 0; r < count * out; ++r) {
        for (float& element : row) element = size * random.uniform();
        append(dtype, row);
      }
      tracks_.push_back({rows_.back().data(), dtype, count, out, in});
    }
  }
  const TrackWeights& tracks() const { return tracks_; }
  TrackWeights load(Backend& backend, WeightRole role = WeightRole::matrix) const {
    TrackWeights loaded;
    for (std::size_t t = 0; t < tracks_.size(); ++t) {
      const Weight& w = tracks_[t];
      FromMemory source(rows_[t], static_cast<std::size_t>(w.in) * size_of(w.dtype),
                        std::as_bytes(std::span(scales_[t])),
                        static_cast<std::size_t>(int8_groups(w.in)) * 2);
      loaded.push_back(backend.load_weight({"random", role, w.dtype, w.count, w.out, w.in}, source));
      EXPECT_EQ(source.bytes_read(), rows_[t].size());
    }
    return loaded;
  }
  DType dtype() const { return tracks_[0].dtype; }
  std::int64_t out() const { return tracks_[0].out; }
  std::int64_t in() const { return tracks_[0].in; }
  double value(std::int64_t track, std::int64_t row, std::int64_t column) const {
    const auto t = static_cast<std::size_t>(track);
    return values_[t][static_cast<std::size_t>(row * tracks_[t].in + column)];
  }

 private:
  // Adds a row to the last track, rounded to the type.
  void append(DType dtype, std::span<const float> row) {
    if (dtype == DType::int8) return append_int8(row);
    for (const float element : row) {
      const std::uint16_t half = dtype == DType::float16 ? to_float16(element) : to_bfloat16(element);
      if (dtype == DType::float32) {
        append_bytes(std::as_bytes(std::span(&element, 1)));
        values_.back().push_back(double{element});
      } else {
        append_bytes(std::as_bytes(std::span(&half, 1)));
        values_.back().push_back(double{dtype == DType::float16 ? from_float16(half) : from_bfloat16(half)});
      }
    }
  }
  void append_int8(std::span<const float> row) {
    std::vector<std::int8_t> q(row.size());
    std::vector<std::uint16_t> scales(
        static_cast<std::size_t>(int8_groups(static_cast<std::int64_t>(row.size()))));
    EXPECT_EQ(quantize_int8_row(row, q, scales), row.size());
    append_bytes(std::as_bytes(std::span(q)));
    scales_.back().insert(scales_.back().end(), scales.begin(), scales.end());
    for (std::size_t i = 0; i < q.size(); ++i)
      values_.back().push_back(double{from_float16(scales[i / static_cast<std::size_t>(kInt8Group)])} * q[i]);
  }
  void append_bytes(std::span<const std::byte> bytes) {
    rows_.back().insert(rows_.back().end(), bytes.begin(), bytes.end());
  }

  std::vector<std::vector<std::byte>> rows_;
  std::vector<std::vector<std::uint16_t>> scales_;
  std::vector<std::vector<double>> values_;
  TrackWeights tracks_;
};

inline float rounded_to(DType dtype, float value) {
  if (dtype == DType::float32) return value;
  return dtype == DType::float16 ? from_float16(to_float16(value)) : from_bfloat16(to_bfloat16(value));
}

// |actual − expected| is at most `tolerance` times the larger of 1 and |expected|.
inline void expect_close(double actual, double expected, double tolerance, const std::string& where) {
  ASSERT_NEAR(actual, expected, tolerance * std::max(1.0, std::abs(expected))) << where;
}
template <typename Expected>
void expect_close(const std::vector<float>& actual, const std::vector<Expected>& expected, double tolerance,
                  const std::string& where) {
  ASSERT_EQ(actual.size(), expected.size()) << where;
  for (std::size_t i = 0; i < actual.size(); ++i)
    ASSERT_NEAR(actual[i], expected[i], tolerance * std::max(1.0, std::abs(double{expected[i]})))
        << where << ", element " << i;
}

inline bool same_bits(const float* a, const float* b, std::int64_t n) {
  return std::memcmp(a, b, static_cast<std::size_t>(n) * sizeof(float)) == 0;
}

// RMSNorm of n elements in float64.
inline std::vector<double> rms_normed(const float* x, const RandomWeights& w, std::int64_t track,
                                      std::int64_t n, double eps) {
  double squares = 0;
  for (std::int64_t i = 0; i < n; ++i) squares += double{x[i]} * double{x[i]};
  std::vector<double> out;
  for (std::int64_t i = 0; i < n; ++i)
    out.push_back(double{x[i]} / std::sqrt(squares / static_cast<double>(n) + eps) * w.value(track, 0, i));
  return out;
}

#ifdef PTRT_SANITIZED
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// A list of cases. Under a sanitizer, where each takes ten times as long, the first, every third and the last
// of them: other builds check the bits, and memory errors show with any case of a kind.
template <typename Case>
std::vector<Case> thinned(std::vector<Case> cases) {
  if (!kSanitized) return cases;
  std::vector<Case> kept;
  for (std::size_t i = 0; i < cases.size(); ++i)
    if (i % 3 == 0 || i + 1 == cases.size()) kept.push_back(cases[i]);
  return kept;
}

// The instruction sets that ops run on. One that has the bfloat16 products too stands for the one without:
// they differ in those products only (CpuBackend tests).
inline std::vector<std::string> op_targets() {
  std::vector<std::string> names = simd_targets();
  std::erase_if(names,
                [all = names](const std::string& name) { return std::ranges::count(all, name + "+BF16"); });
  return names;
}

inline std::string param_name(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::ranges::replace(name, '+', '_');
  return name;
}

#define PTRT_EVERY_TARGET(suite) \
  INSTANTIATE_TEST_SUITE_P(Every, suite, ::testing::ValuesIn(op_targets()), param_name)

}  // namespace ptrt::testing
