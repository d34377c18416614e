// Products of the CUDA backend with int8 and float8 matrices, which it keeps as they are stored.
#include "kernels/base/error.h"
#include "ops/fixtures/product_fixture.h"

namespace ptrt::testing {
namespace {

class Linear8Bit : public ProductTest {
 protected:
  static constexpr DType kTypes[] = {DType::int8, DType::float8_e4m3};

  // codes [out, in] with their scales, as the backend has them.
  TrackWeights load(DType dtype, std::int64_t out, std::int64_t in, std::span<const std::byte> codes,
                    std::span<const std::byte> scales) {
    FromMemory source(codes, static_cast<std::size_t>(in), scales,
                      scales.size() / static_cast<std::size_t>(out));
    return {backend().load_weight({"codes", WeightRole::matrix, dtype, 1, out, in}, source)};
  }
};
INSTANTIATE_TEST_SUITE_P(Every, Linear8Bit, ::testing::ValuesIn(without_reference(backends_on({}))),
                         param_name);

// Passes of 16 rows, the last of them with fewer; more than 48 rows by cuBLASLt; widths that it does not take, and
// those that rows are filled up to.
TEST_P(Linear8Bit, AgreesWithFloat64) {
  for (const DType dtype : kTypes) {
    for (const auto& [out, in] : {std::pair{1, 1},
                                  {1, 8},
                                  {3, 10},
                                  {16, 64},
                                  {17, 37},
                                  {24, 48},
                                  {40, 1100},
                                  {33, 128},
                                  {24, 130},
                                  {70, 40},
                                  {9, 1025},
                                  {8, 2056}})
      for (const std::int64_t rows : {1, 2, 7, 9, 16, 17, 48, 49, 64})
        if (rows < 48 || in < 1000) check(dtype, {2, rows, out, in}, activations());
    for (const Shape& s : {Shape{1, 3, 150, 2500}, {1, 64, 16, 1100}, {18, 3, 24, 40}, {18, 50, 24, 40}})
      check(dtype, s, activations());
  }
}

// What few rows give is then not rounded at all, so that a weight or a scale that is shows.
TEST_P(Linear8Bit, WritesFloat32) {
  for (const DType dtype : kTypes)
    for (const std::int64_t rows : {1, 12, 30, 50})
      for (const std::int64_t out : {259, 64})
        for (const bool biased : {false, true}) check(dtype, {2, rows, out, 72}, DType::float32, biased);
}

TEST_P(Linear8Bit, AddsABias) {
  for (const DType dtype : kTypes)
    for (const auto& [out, in] : {std::pair{1, 8}, {40, 300}, {19, 37}, {24, 130}})
      for (const std::int64_t rows : {1, 7, 16, 17, 64})
        check(dtype, {2, rows, out, in}, activations(), true);
}

// Of the jobs of a list, and of the tracks of a job, each may have another type.
TEST_P(Linear8Bit, RunsJobsOfSeveralTypes) {
  Random random(5);
  const auto mixed = [&](std::int64_t out, std::span<const DType> types) {
    std::vector<RandomWeights> weights;
    for (const DType type : types) weights.emplace_back(type, 1, 1, out, 24, random);
    return weights;
  };
  constexpr DType kQ[] = {DType::int8, DType::int8, DType::int8},
                  kK[] = {DType::bfloat16, DType::bfloat16, DType::bfloat16},
                  kV[] = {DType::float8_e4m3, DType::float16, DType::int8};
  const std::vector<RandomWeights> weights[] = {mixed(32, kQ), mixed(8, kK), mixed(7, kV)};
  std::vector<TrackWeights> loaded;
  for (const auto& job : weights) {
    loaded.emplace_back();
    for (const RandomWeights& track : job) loaded.back().push_back(track.load(backend())[0]);
  }
  for (const std::int64_t rows : {4, 20, 60}) {
    const Array x(backend(), 1, rows, 24, activations(), random);
    std::vector<Array> y;
    std::vector<LinearJob> jobs;
    y.reserve(3);
    for (std::size_t i = 0; i < 3; ++i) {
      y.emplace_back(backend(), 3, rows, weights[i][0].out(), activations());
      jobs.push_back({&loaded[i], x.tensor.broadcast(3), y[i].tensor});
    }
    backend().linear(jobs);
    for (std::size_t i = 0; i < 3; ++i) {
      const Activation actual = y[i].get();
      for (std::size_t t = 0; t < 3; ++t) {
        const auto size = static_cast<std::size_t>(rows * weights[i][t].out());
        expect_product(std::span<const float>(actual.values).subspan(t * size, size), activations(),
                       product(weights[i][t], x.host), 24,
                       fmt::format("rows {} job {} track {}", rows, i, t));
      }
    }
  }
}

// One kernel up to 48 rows; with more, of another width, or of different types, two products and their gate.
TEST_P(Linear8Bit, GatesOneProductByAnother) {
  for (const DType dtype : kTypes)
    for (const auto& [tracks, out, in] :
         {std::tuple{2, 33, 40}, {1, 24, 72}, {18, 16, 24}, {1, 20, 37}, {3, 40, 1100}})
      for (const std::int64_t rows : {1, 8, 9, 16, 17, 50})
        for (const bool alike : {true, false}) {
          Random random(static_cast<unsigned>(rows));
          const RandomWeights gate(dtype, tracks, 1, out, in, random),
              up(alike ? dtype : matrices(), tracks, 1, out, in, random);
          const TrackWeights gate_loaded = gate.load(backend()), up_loaded = up.load(backend());
          const Array x(backend(), tracks, rows, in, activations(), random);
          const Array gate_out(backend(), tracks, rows, out, activations()),
              up_out(backend(), tracks, rows, out, activations());
          backend().gated_linear(FfnActivation::silu, {&gate_loaded, x.tensor, gate_out.tensor},
                                 {&up_loaded, x.tensor, up_out.tensor});
          std::vector<double> expected = product(gate, x.host).value;
          const std::vector<double> factor = product(up, x.host).value;
          for (std::size_t i = 0; i < expected.size(); ++i)
            expected[i] *= factor[i] / (1 + std::exp(-expected[i]));
          expect_close(gate_out.get().values, expected,
                       std::sqrt(static_cast<double>(in)) * 2 * unit_roundoff(activations()),
                       fmt::format("{} alike {} tracks {} rows {} out {} in {}", to_string(dtype), alike,
                                   tracks, rows, out, in));
        }
}

// For as many rows as run in passes.
TEST_P(Linear8Bit, FewRowsAreBatchInvariant) {
  for (const DType dtype : kTypes) {
    Random random(7);
    const RandomWeights weights(dtype, 1, 1, 24, 136, random);
    const TrackWeights w = weights.load(backend());
    constexpr std::int64_t kRows = 48;
    const Array x(backend(), 1, kRows, 136, activations(), random);
    const Array all(backend(), 1, kRows, 24, activations()), alone(backend(), 1, kRows, 24, activations());
    const LinearJob job{&w, x.tensor, all.tensor};
    backend().linear({&job, 1});
    for (std::int64_t r = 0; r < kRows; ++r) {
      const LinearJob one{&w, rows_of(x.tensor, r, 1), rows_of(alone.tensor, r, 1)};
      backend().linear({&one, 1});
    }
    EXPECT_EQ(all.get().values, alone.get().values) << to_string(dtype);
  }
}

// Every code at every place of a group, through a product with 1: widened exactly, by either path.
TEST_P(Linear8Bit, WidensEveryCode) {
  for (const DType dtype : kTypes)
    for (const std::int64_t in : {32, 37})
      for (const std::int64_t rows : {1, 49}) {
        std::vector<std::uint8_t> codes(static_cast<std::size_t>(256 * in));
        const auto code_at = [&](std::int64_t row, std::int64_t i) {
          return static_cast<std::uint8_t>(row + 17 * i);
        };
        for (std::int64_t row = 0; row < 256; ++row)
          for (std::int64_t i = 0; i < in; ++i) {
            std::uint8_t code = code_at(row, i);
            if (dtype == DType::float8_e4m3 && (code & 0x7F) == 0x7F) code = 0;
            codes[static_cast<std::size_t>(row * in + i)] = code;
          }
        const std::vector<float> ones(256, 1);
        const std::vector<std::uint16_t> half_ones(512, to_float16(1));
        const bool is_int8 = dtype == DType::int8;
        const auto half_bytes = std::as_bytes(std::span(half_ones)).first(in > 32 ? 1024 : 512);
        const TrackWeights w = load(dtype, 256, in, std::as_bytes(std::span(codes)),
                                    is_int8 ? half_bytes : std::as_bytes(std::span(ones)));
        Array x(backend(), 1, rows, in, activations());
        const Array y(backend(), 1, rows, 256, DType::float32);
        for (std::int64_t i = 0; i < in; ++i) {
          std::ranges::fill(x.host.values, 0.0f);
          for (std::int64_t r = 0; r < rows; ++r) x.host.values[static_cast<std::size_t>(r * in + i)] = 1;
          x.put();
          const LinearJob job{&w, x.tensor, y.tensor};
          backend().linear({&job, 1});
          const Activation actual = y.get();
          for (std::int64_t row = 0; row < 256; ++row) {
            const std::uint8_t code = codes[static_cast<std::size_t>(row * in + i)];
            ASSERT_EQ(double{actual.at(0, rows - 1, row)},
                      is_int8 ? static_cast<double>(static_cast<std::int8_t>(code)) : float8_value(code))
                << to_string(dtype) << " code " << int{code} << " input " << i << " rows " << rows;
          }
        }
      }
}

// A NaN, of either sign, makes its output a NaN and no other.
TEST_P(Linear8Bit, KeepsNaN) {
  for (const std::int64_t in : {16, 19})
    for (const std::int64_t rows : {1, 49}) {
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(24 * in), 0x38);  // 1
      codes[static_cast<std::size_t>(3 * in + 5)] = 0x7F;
      codes[static_cast<std::size_t>(20 * in)] = 0xFF;
      const std::vector<float> scales(24, 0.5f);
      const TrackWeights w =
          load(DType::float8_e4m3, 24, in, std::as_bytes(std::span(codes)), std::as_bytes(std::span(scales)));
      Array x(backend(), 1, rows, in, activations());
      std::ranges::fill(x.host.values, 2.0f);
      x.put();
      const Array y(backend(), 1, rows, 24, activations());
      const LinearJob job{&w, x.tensor, y.tensor};
      backend().linear({&job, 1});
      const Activation actual = y.get();
      for (std::int64_t out = 0; out < 24; ++out) {
        const float value = actual.at(0, rows - 1, out);
        if (out == 3 || out == 20)
          EXPECT_TRUE(std::isnan(value)) << out;
        else
          EXPECT_EQ(value, static_cast<float>(in)) << out;
      }
    }
}

// Half the bytes of 16-bit matrices, and scales: two bytes for 32 inputs, or four for a row.
TEST_P(Linear8Bit, TakesOneByteAWeight) {
  Random random(9);
  const auto taken = [&](DType dtype) {
    const std::size_t before = backend().weight_bytes();
    RandomWeights(dtype, 1, 1, 64, 256, random).load(backend());
    return backend().weight_bytes() - before;
  };
  EXPECT_EQ(taken(DType::int8), 64u * 256 + 64 * 8 * 2);
  EXPECT_EQ(taken(DType::float8_e4m3), 64u * 256 + 64 * 4);
  EXPECT_EQ(taken(matrices()), 2u * 64 * 256);
}

TEST_P(Linear8Bit, RefusesWhatIsNoMatrix) {
  for (const DType dtype : kTypes)
    for (const WeightRole role :
         {WeightRole::embedding, WeightRole::tied_embedding, WeightRole::router, WeightRole::vector}) {
      FromFunction source([](std::span<std::byte>) { FAIL() << "read"; });
      try {
        backend().load_weight({"tracks/00/it", role, dtype, 1, 8, 32}, source);
        FAIL() << "took it";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::bad_input);
        EXPECT_NE(std::string(error.what()).find("tracks/00/it"), std::string::npos) << error.what();
        EXPECT_NE(std::string(error.what()).find(to_string(dtype)), std::string::npos) << error.what();
      }
    }
}

}  // namespace
}  // namespace ptrt::testing
