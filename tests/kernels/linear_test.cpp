#include "op_test.h"

namespace ptrt::testing {
namespace {

class Linear : public OpTest {};
class LinearBits : public CpuOpTest {};
PTRT_EVERY_BACKEND(Linear);
PTRT_EVERY_TARGET(LinearBits);

struct Shape {
  std::int64_t tracks, rows, out, in;
};

void check(Backend& backend, DType dtype, const Shape& s) {
  Random random(static_cast<unsigned>(s.rows * 1000 + s.out * 10 + s.in));
  const RandomWeights w(dtype, s.tracks, 1, s.out, s.in, random);
  const Activation x(s.tracks, s.rows, s.in, random);
  Activation y(s.tracks, s.rows, s.out);
  const TrackWeights loaded = w.load(backend);
  const LinearJob job{&loaded, x.tensor, y.tensor};
  backend.linear({&job, 1});
  for (std::int64_t t = 0; t < s.tracks; ++t)
    for (std::int64_t r = 0; r < s.rows; ++r)
      for (std::int64_t o = 0; o < s.out; ++o) {
        double expected = 0, magnitude = 0;
        for (std::int64_t i = 0; i < s.in; ++i) {
          const double term = w.value(t, o, i) * double{x.at(t, r, i)};
          expected += term;
          magnitude += std::abs(term);
        }
        expect_close(y.at(t, r, o), expected, 1e-6 + 1e-7 * magnitude,
                     fmt::format("{} tracks {} rows {} out {} in {}: track {} row {} out {}",
                                 to_string(dtype), s.tracks, s.rows, s.out, s.in, t, r, o));
      }
}

TEST_P(Linear, AgreesWithFloat64) {
  const auto backend = make_backend();
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16, DType::int8}) {
    for (const std::int64_t in : {1, 10, 37, 40, 65, 128})
      for (const std::int64_t out : {1, 3, 16, 17, 70, 150})
        for (const std::int64_t rows : {1, 2, 3, 5, 6, 7, 13}) check(*backend, dtype, {2, rows, out, in});
    check(*backend, dtype, {1, 70, 13, 96});
    check(*backend, dtype, {1, 75, 3, 1023});
    check(*backend, dtype, {1, 3, 9, 1025});
    check(*backend, dtype, {1, 9, 150, 2500});
    check(*backend, dtype, {8, 1, 200, 64});
  }
}

TEST_P(Linear, RunsAListOfJobsAndBroadcasts) {
  Random random(5);
  const auto backend = make_backend();
  const RandomWeights wq(DType::bfloat16, 3, 1, 24, 20, random), wk(DType::float32, 3, 1, 7, 20, random);
  const Activation x(1, 4, 20, random);
  Activation q(3, 4, 24), k(3, 4, 7);
  const TrackWeights q_loaded = wq.load(*backend), k_loaded = wk.load(*backend);
  const LinearJob jobs[] = {{&q_loaded, x.tensor.broadcast(3), q.tensor}, {&k_loaded, x.tensor, k.tensor}};
  backend->linear(jobs);
  for (std::int64_t t = 0; t < 3; ++t)
    for (std::int64_t r = 0; r < 4; ++r) {
      double expected_q = 0, expected_k = 0;
      for (std::int64_t i = 0; i < 20; ++i) {
        expected_q += wq.value(t, 23, i) * double{x.at(0, r, i)};
        expected_k += wk.value(t, 6, i) * double{x.at(0, r, i)};
      }
      expect_close(q.at(t, r, 23), expected_q, 1e-5, "first job");
      expect_close(k.at(t, r, 6), expected_k, 1e-5, "second job");
    }
}

struct ComputeCase {
  CpuOptions options;
  DType dtype;
  WeightRole role = WeightRole::matrix;
};

const std::vector<ComputeCase> kComputeCases{
    {{.compute = Compute::float32}, DType::float32},
    {{.compute = Compute::float32}, DType::float16},
    {{.compute = Compute::float32}, DType::bfloat16},
    {{.compute = Compute::float32}, DType::int8},
    {{.compute = Compute::float32, .quantize_int8 = true}, DType::bfloat16},
    {{.compute = Compute::bfloat16}, DType::float32},
    {{.compute = Compute::bfloat16}, DType::float16},
    {{.compute = Compute::bfloat16}, DType::bfloat16},
    {{.compute = Compute::int8}, DType::int8},
    {{.compute = Compute::int8, .quantize_int8 = true}, DType::float32},
    {{.compute = Compute::int8, .quantize_int8 = true}, DType::float16},
    {{.compute = Compute::int8, .quantize_int8 = true}, DType::bfloat16},
    {{.compute = Compute::bfloat16}, DType::float32, WeightRole::tied_embedding},
    {{.compute = Compute::int8}, DType::float32, WeightRole::tied_embedding},
    {{.compute = Compute::int8, .quantize_int8 = true}, DType::float16, WeightRole::tied_embedding},
    {{.compute = Compute::int8, .quantize_int8 = true}, DType::bfloat16, WeightRole::tied_embedding},
};

std::string name_of(const ComputeCase& c) {
  return fmt::format("{} products of {} weights{}{}", to_string(c.options.compute), to_string(c.dtype),
                     c.options.quantize_int8 ? ", quantised" : "",
                     c.role == WeightRole::tied_embedding ? ", tied" : "");
}

// Every way to compute against the reference that rounds the same way. A sum's error is measured by the size
// of its terms.
TEST_P(LinearBits, AgreesWithTheReference) {
  for (const ComputeCase& c : kComputeCases) {
    const auto fast = make_backend(c.options);
    ReferenceBackend reference(c.options);
    for (const std::int64_t in : {1, 10, 37, 40, 65, 768})
      for (const std::int64_t out : {1, 3, 17, 150})
        for (const std::int64_t rows : {1, 2, 7, 20}) {
          Random random(static_cast<unsigned>(in * out + rows));
          const RandomWeights w(c.dtype, 1, 1, out, in, random);
          const Activation x(1, rows, in, random);
          Activation y(1, rows, out), expected(1, rows, out);
          const TrackWeights fast_weights = w.load(*fast, c.role),
                             reference_weights = w.load(reference, c.role);
          const LinearJob fast_job{&fast_weights, x.tensor, y.tensor};
          const LinearJob reference_job{&reference_weights, x.tensor, expected.tensor};
          fast->linear({&fast_job, 1});
          reference.linear({&reference_job, 1});
          const double scale =
              std::sqrt(static_cast<double>(in)) / 3;  // of a sum of `in` products in [-1, 1]
          for (std::size_t i = 0; i < y.values.size(); ++i)
            ASSERT_NEAR(double{y.values[i]}, double{expected.values[i]}, 1e-5 * scale)
                << name_of(c) << " in " << in << " out " << out << " rows " << rows << " element " << i;
        }
  }
}

// A row's result is the same alone and at any place in a batch, on any number of threads.
TEST_P(LinearBits, HangOnTheRowAlone) {
  for (const ComputeCase& c : kComputeCases)
    for (const std::int64_t in : {37, 128, 550, 2200}) {
      Random random(static_cast<unsigned>(in));
      constexpr std::int64_t kOut = kSanitized ? 53 : 213, kMaxRows = 80;
      const RandomWeights w(c.dtype, 1, 1, kOut, in, random);
      const Activation x(1, kMaxRows, in, random);
      Activation alone(1, kMaxRows, kOut);
      const auto single = make_backend(c.options);
      const TrackWeights single_weights = w.load(*single, c.role);
      for (std::int64_t r = 0; r < kMaxRows; ++r) {
        const LinearJob job{
            &single_weights, {x.tensor.row(0, r), 1, 1, in, in}, {alone.tensor.row(0, r), 1, 1, kOut, kOut}};
        single->linear({&job, 1});
      }
      for (const int threads : thinned<int>({1, 2, 3})) {
        CpuOptions options = c.options;
        options.threads = threads;
        const auto backend = make_backend(options);
        const TrackWeights weights = w.load(*backend, c.role);
        for (const std::int64_t rows : thinned<std::int64_t>({2, 3, 4, 5, 6, 7, 8, 9, 12, 33, 80})) {
          Activation y(1, rows, kOut);
          const LinearJob job{&weights, x.tensor.first_rows(rows), y.tensor};
          backend->linear({&job, 1});
          ASSERT_TRUE(same_bits(y.values.data(), alone.values.data(), rows * kOut))
              << name_of(c) << " in " << in << " rows " << rows << " threads " << threads;
        }
      }
    }
}

// A thread's run of panels begins and ends anywhere in a list of matrices, at several panels side by side
// too.
TEST_P(LinearBits, HangOnTheMatrixAlone) {
  constexpr std::int64_t kIn = 550, kOuts[] = {90, 213, 53};
  for (const ComputeCase& c : kComputeCases) {
    Random random(17);
    std::vector<RandomWeights> matrices;
    for (const std::int64_t out : kOuts) matrices.emplace_back(c.dtype, 1, 1, out, kIn, random);
    const Activation x(1, 8, kIn, random);
    for (const int threads : {1, 2, 3}) {
      CpuOptions options = c.options;
      options.threads = threads;
      const auto backend = make_backend(options);
      std::vector<TrackWeights> weights;
      for (const RandomWeights& matrix : matrices) weights.push_back(matrix.load(*backend, c.role));
      for (const std::int64_t rows : {1, 2, 3, 8}) {
        std::vector<Activation> together, alone;
        std::vector<LinearJob> jobs;
        for (const std::int64_t out : kOuts) {
          together.emplace_back(1, rows, out);
          alone.emplace_back(1, rows, out);
        }
        for (std::size_t i = 0; i < std::size(kOuts); ++i) {
          jobs.push_back({&weights[i], x.tensor.first_rows(rows), together[i].tensor});
          const LinearJob job{&weights[i], x.tensor.first_rows(rows), alone[i].tensor};
          backend->linear({&job, 1});
        }
        backend->linear(jobs);
        for (std::size_t i = 0; i < std::size(kOuts); ++i)
          ASSERT_TRUE(same_bits(together[i].values.data(), alone[i].values.data(), rows * kOuts[i]))
              << name_of(c) << " matrix " << i << " rows " << rows << " threads " << threads;
      }
    }
  }
}

// More rows than a task takes.
TEST_P(LinearBits, CutManyRows) {
  Random random(4);
  constexpr std::int64_t kRows = 600, kOut = 40, kIn = 33;
  const RandomWeights w(DType::bfloat16, 1, 1, kOut, kIn, random);
  const Activation x(1, kRows, kIn, random);
  Activation y(1, kRows, kOut), part(1, 10, kOut);
  const auto backend = make_backend(3);
  const TrackWeights weights = w.load(*backend);
  const LinearJob job{&weights, x.tensor, y.tensor};
  backend->linear({&job, 1});
  for (std::int64_t r = 0; r < kRows; r += 10) {
    const LinearJob part_job{&weights, {x.tensor.row(0, r), 1, 10, kIn, kIn}, part.tensor};
    backend->linear({&part_job, 1});
    ASSERT_TRUE(same_bits(y.tensor.row(0, r), part.tensor.row(0, 0), 10 * kOut)) << "row " << r;
  }
}

TEST_P(LinearBits, RefuseTypesThatDoNotGoTogether) {
  Random random(1);
  const RandomWeights wide(DType::bfloat16, 1, 1, 4, 8, random), small(DType::int8, 1, 1, 4, 8, random);
  EXPECT_THROW(small.load(*make_backend({.compute = Compute::bfloat16})), Error);
  EXPECT_THROW(wide.load(*make_backend({.compute = Compute::bfloat16, .quantize_int8 = true})), Error);
  EXPECT_THROW(wide.load(*make_backend({.compute = Compute::int8})), Error);
  EXPECT_THROW(small.load(*make_backend(1), WeightRole::router), Error);
  EXPECT_THROW(small.load(*make_backend(1), WeightRole::embedding), Error);
  EXPECT_THROW(small.load(*make_backend(1), WeightRole::tied_embedding), Error);
}

// A head that is the embedding too keeps its type among int8 products, and what its own take hangs on the
// type.
TEST_P(LinearBits, TiedHeadsAreNeverInt8) {
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
    Random random(9);
    constexpr std::int64_t kOut = 50, kIn = 70, kRows = 3;
    const RandomWeights w(dtype, 1, 1, kOut, kIn, random);
    const Activation x(1, kRows, kIn, random);
    const bool pairs = dtype == DType::bfloat16 && cpu_computes(Compute::bfloat16);
    const auto result = [&](const CpuOptions& options) {
      const auto backend = make_backend(options);
      const TrackWeights weights = w.load(*backend, WeightRole::tied_embedding);
      EXPECT_EQ(weights[0].dtype, dtype);
      Activation y(1, kRows, kOut);
      const LinearJob job{&weights, x.tensor, y.tensor};
      backend->linear({&job, 1});
      return y.values;
    };
    EXPECT_EQ(result({.compute = Compute::int8, .quantize_int8 = true}),
              result({.compute = pairs ? Compute::bfloat16 : Compute::float32}))
        << to_string(dtype);
    EXPECT_EQ(result({.compute = Compute::float32, .quantize_int8 = true}), result({}));
  }
}

// Every 16-bit pattern, through a product with 1.
TEST_P(Linear, WidensEveryHalf) {
  const auto backend = make_backend();
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    std::vector<std::uint16_t> bits(65536);
    for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
    FromMemory source(std::as_bytes(std::span(bits)), 2);
    const TrackWeights w{backend->load_weight({"halves", WeightRole::matrix, dtype, 1, 65536, 1}, source)};
    Activation x(1, 1, 1), y(1, 1, 65536);
    x.values[0] = 1;
    const LinearJob job{&w, x.tensor, y.tensor};
    backend->linear({&job, 1});
    for (std::int64_t i = 0; i < 65536; ++i) {
      const int exponent_bits = dtype == DType::float16 ? 5 : 8, mantissa_bits = 15 - exponent_bits;
      const int bias = (1 << (exponent_bits - 1)) - 1;
      const auto exponent = static_cast<int>(i >> mantissa_bits & ((1 << exponent_bits) - 1));
      const auto mantissa = static_cast<double>(i & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits);
      const bool special = exponent == (1 << exponent_bits) - 1;
      double expected =
          exponent == 0 ? std::ldexp(mantissa, 1 - bias) : std::ldexp(1 + mantissa, exponent - bias);
      if (special) expected = mantissa == 0 ? INFINITY : NAN;
      if ((i & 0x8000) != 0) expected = -expected;
      const float actual = y.values[static_cast<std::size_t>(i)];
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(actual)) << to_string(dtype) << " bits " << i;
      } else {
        ASSERT_EQ(double{actual}, expected) << to_string(dtype) << " bits " << i;
      }
    }
  }
}

// The same patterns through look-ups, of a table and of a head that is the table too.
TEST_P(Linear, EmbedsEveryHalf) {
  const auto backend = make_backend();
  constexpr std::int64_t kWidth = 257;
  for (const DType dtype : {DType::float16, DType::bfloat16})
    for (const WeightRole role : {WeightRole::embedding, WeightRole::tied_embedding}) {
      std::vector<std::uint16_t> bits(256 * kWidth);
      for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
      const Weight stored{bits.data(), dtype, 1, 256, kWidth};
      FromMemory source(std::as_bytes(std::span(bits)), kWidth * 2);
      const Weight table = backend->load_weight({"table", role, dtype, 1, 256, kWidth}, source);
      std::vector<std::int32_t> tokens(256);
      for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(255 - i);
      Activation x(1, 256, kWidth);
      backend->embed(table, tokens, x.tensor);
      for (std::int64_t r = 0; r < 256; ++r)
        for (std::int64_t i = 0; i < kWidth; ++i) {
          const float expected = weight_element(stored, (255 - r) * kWidth + i);
          const float actual = x.at(0, r, i);
          ASSERT_TRUE(std::isnan(expected) ? std::isnan(actual) : actual == expected)
              << "row " << r << " column " << i;
        }
    }
}

}  // namespace
}  // namespace ptrt::testing
