#include <cmath>

#include "kernels/base/scalar_types.h"
#include "kernels/int8.h"
#include "ops/fixtures/op_fixture.h"

namespace ptrt::testing {
namespace {

class LinearBits : public CpuOpTest {};
PTRT_EVERY_TARGET(LinearBits);

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

// Every way to compute, against the reference that rounds the same way. The tolerance grows with a sum's size.
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
TEST_P(LinearBits, BatchInvariant) {
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
        const LinearJob job{&single_weights, rows_of(x.tensor, r, 1), rows_of(alone.tensor, r, 1)};
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

// A row of x as int8 products take it: the definition of RowFormat::int8, one element at a time.
struct QuantisedRow {
  std::vector<std::int32_t> q;
  std::vector<float> scales;

  explicit QuantisedRow(std::span<const float> x) {
    for (std::size_t begin = 0; begin < x.size(); begin += kInt8Group) {
      const auto group = x.subspan(begin, std::min<std::size_t>(kInt8Group, x.size() - begin));
      float largest = 0;
      for (const float value : group) largest = std::max(largest, std::abs(value));
      scales.push_back(largest / 127.0f);
      const float inverse = 127.0f / largest;
      for (const float value : group) q.push_back(static_cast<std::int32_t>(std::nearbyint(value * inverse)));
    }
  }
};

float int8_product(const QuantisedRow& x, std::span<const std::int8_t> q,
                   std::span<const std::uint16_t> scales) {
  float sum = 0;
  for (std::size_t g = 0; g < scales.size(); ++g) {
    std::int32_t group = 0;
    for (std::size_t i = g * kInt8Group; i < std::min((g + 1) * kInt8Group, q.size()); ++i)
      group += x.q[i] * q[i];
    sum = std::fma(static_cast<float>(group), from_float16(scales[g]) * x.scales[g], sum);
  }
  return sum;
}

// Whatever instructions multiply int8, on every instruction set with fused multiply-adds: a group's sum is exact.
TEST_P(LinearBits, Int8ProductsAreThoseOfTheDefinition) {
  const std::string vectors = simd_target();
  if (vectors != "AVX2" && vectors != "AVX3" && vectors != "NEON") GTEST_SKIP() << "no fused multiply-adds";
  const auto backend = make_backend({.compute = Compute::int8});
  constexpr std::size_t kOut = 37;
  for (const std::size_t in : {1, 31, 32, 37, 64, 96, 550}) {
    const std::size_t groups = (in + kInt8Group - 1) / kInt8Group;
    Random random(static_cast<unsigned>(in));
    std::vector<std::int8_t> q(kOut * in);
    std::vector<std::uint16_t> scales(kOut * groups);
    for (std::int8_t& element : q) element = static_cast<std::int8_t>(std::lround(127 * random.uniform()));
    for (std::uint16_t& scale : scales) scale = to_float16(0.01f + 0.005f * random.uniform());
    q[0] = -128;
    FromMemory source(std::as_bytes(std::span(q)), in, std::as_bytes(std::span(scales)), groups * 2);
    const auto width = static_cast<std::int64_t>(in);
    const TrackWeights weights{
        backend->load_weight({"random", WeightRole::matrix, DType::int8, 1, kOut, width}, source)};
    for (const std::int64_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 13, 40}) {
      const Activation x(1, rows, width, random);
      Activation y(1, rows, kOut);
      const LinearJob job{&weights, x.tensor, y.tensor};
      backend->linear({&job, 1});
      for (std::int64_t r = 0; r < rows; ++r) {
        const QuantisedRow row({x.tensor.row(0, r), in});
        for (std::size_t o = 0; o < kOut; ++o)
          ASSERT_EQ(y.tensor.row(0, r)[o], int8_product(row, std::span(q).subspan(o * in, in),
                                                        std::span(scales).subspan(o * groups, groups)))
              << "in " << in << " rows " << rows << " row " << r << " out " << o;
      }
    }
  }
}

// Products and sums below the normal numbers, which instructions take for zero or not: all rows of a target alike.
TEST_P(LinearBits, BatchInvariantBelowTheNormalNumbers) {
  for (const ComputeCase& c : kComputeCases) {
    constexpr std::int64_t kIn = 37, kOut = 53, kRows = 24;
    Random random(3);
    const RandomWeights w(c.dtype, 1, 1, kOut, kIn, random);
    Activation x(1, kRows, kIn, random), alone(1, kRows, kOut), together(1, kRows, kOut);
    for (float& value : x.values) value *= 0x1p-125f;  // products are a little larger or smaller than 2^-126
    const auto backend = make_backend(c.options);
    const TrackWeights weights = w.load(*backend, c.role);
    const LinearJob job{&weights, x.tensor, together.tensor};
    backend->linear({&job, 1});
    for (std::int64_t r = 0; r < kRows; ++r) {
      const LinearJob one{&weights, rows_of(x.tensor, r, 1), rows_of(alone.tensor, r, 1)};
      backend->linear({&one, 1});
    }
    ASSERT_TRUE(same_bits(together.values.data(), alone.values.data(), kRows * kOut)) << name_of(c);
  }
}

// A thread's run of panels begins and ends anywhere in a list of matrices, also where it takes several panels
// side by side.
TEST_P(LinearBits, IndependentOfTheOtherMatrices) {
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
    const LinearJob part_job{&weights, rows_of(x.tensor, r, 10), part.tensor};
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

// A head that is also the embedding keeps its type among int8 products, and its own products depend on that
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

}  // namespace
}  // namespace ptrt::testing
