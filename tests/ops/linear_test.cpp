#include "ops/fixtures/product_fixture.h"

namespace ptrt::testing {
namespace {

class Linear : public ProductTest {};
PTRT_EVERY_BACKEND(Linear);

// On CUDA, few rows (one launch for all), more (cuBLASLt), and widths that neither likes.
TEST_P(Linear, AgreesWithFloat64) {
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16, DType::int8}) {
    for (const std::int64_t rows : {2, 20}) check(dtype, {1, rows, 24, 48}, activations());
    if (on_cuda() && dtype != matrices()) continue;  // rounded at load, then as the others
    for (const std::int64_t in : {1, 10, 37, 40, 65, 128})
      for (const std::int64_t out : {1, 3, 16, 17, 70, 150})
        for (const std::int64_t rows : {1, 2, 3, 5, 6, 7, 13})
          check(dtype, {2, rows, out, in}, activations());
    for (const auto& [out, in] : {std::pair{1, 8}, {16, 64}, {40, 1100}, {19, 37}, {33, 128}, {24, 130}})
      for (const std::int64_t rows : {1, 8, 9, 16, 17, 40}) check(dtype, {2, rows, out, in}, activations());
    for (const Shape& s : {Shape{1, 70, 13, 96},
                           {1, 75, 3, 1023},
                           {1, 3, 9, 1025},
                           {1, 9, 150, 2500},
                           {8, 1, 200, 64},
                           {18, 3, 24, 40},
                           {18, 20, 24, 40},
                           {1, 70, 17, 24}})
      check(dtype, s, activations());
  }
}

TEST_P(Linear, AddsABias) {
  for (const auto& [out, in] : {std::pair{1, 8}, {16, 64}, {40, 1100}, {19, 37}, {33, 128}, {24, 130}})
    for (const std::int64_t rows : {1, 3, 8, 9, 16, 17, 40})
      check(matrices(), {2, rows, out, in}, activations(), true);
  for (const Shape& s : {Shape{18, 3, 24, 40}, {18, 20, 24, 40}, {3, 20, 600, 40}, {1, 20, 1100, 24}})
    check(matrices(), s, activations(), true);
}

// Logits are not rounded, nor are the parts that ranks that share a track add up.
TEST_P(Linear, WritesFloat32) {
  for (const std::int64_t rows : {1, 12, 30})
    for (const std::int64_t out : {259, 64})
      for (const bool biased : {false, true}) check(matrices(), {2, rows, out, 72}, DType::float32, biased);
}

TEST_P(Linear, RunsAListOfJobsAndBroadcasts) {
  Random random(5);
  for (const std::int64_t rows : {4, 20}) {
    const RandomWeights wq(matrices(), 3, 1, 32, 24, random), wk(DType::float32, 3, 1, 8, 24, random),
        wv(matrices(), 3, 1, 7, 24, random);
    const TrackWeights q_loaded = wq.load(backend()), k_loaded = wk.load(backend()),
                       v_loaded = wv.load(backend());
    const Array x(backend(), 1, rows, 24, activations(), random);
    const Array q(backend(), 3, rows, 32, activations()), k(backend(), 3, rows, 8, activations()),
        v(backend(), 3, rows, 7, activations());
    const LinearJob jobs[] = {{&q_loaded, x.tensor.broadcast(3), q.tensor},
                              {&k_loaded, x.tensor.broadcast(3), k.tensor},
                              {&v_loaded, x.tensor, v.tensor}};
    backend().linear(jobs);
    expect_product(q, wq, x.host, "q");
    expect_product(k, wk, x.host, "k");
    expect_product(v, wv, x.host, "v");
  }
}

// Of q, k and v any may have a bias. k and v are a pair for cuBLASLt.
TEST_P(Linear, AddsTheBiasOfEachJob) {
  Random random(5);
  const std::vector<WeightSpec> specs(2, {"w", WeightRole::matrix, matrices(), 1, 16, 24});
  backend().plan_weights(specs);
  const RandomWeights wk(matrices(), 1, 1, 16, 24, random), wv(matrices(), 1, 1, 16, 24, random),
      wq(matrices(), 1, 1, 32, 24, random), bq(DType::float32, 1, 1, 1, 32, random, 3),
      bk(DType::float32, 1, 1, 1, 16, random, 3), bv(DType::float32, 1, 1, 1, 16, random, 3);
  const TrackWeights k = wk.load(backend()), v = wv.load(backend()), q = wq.load(backend());
  const auto load = [&](const RandomWeights& bias) { return bias.load(backend(), WeightRole::vector); };
  const TrackWeights q_bias = load(bq), k_bias = load(bk), v_bias = load(bv);
  for (const std::int64_t rows : {4, 20})
    for (unsigned biased = 0; biased < 8; ++biased) {
      const bool on_q = (biased & 1) != 0, on_k = (biased & 2) != 0, on_v = (biased & 4) != 0;
      const Array x(backend(), 1, rows, 24, activations(), random);
      const Array q_out(backend(), 1, rows, 32, activations()),
          both(backend(), 1, 2 * rows, 16, activations());
      const LinearJob jobs[] = {{&q, x.tensor, q_out.tensor, on_q ? &q_bias : nullptr},
                                {&k, x.tensor, rows_of(both.tensor, 0, rows), on_k ? &k_bias : nullptr},
                                {&v, x.tensor, rows_of(both.tensor, rows, rows), on_v ? &v_bias : nullptr}};
      backend().linear(jobs);
      const std::string where = fmt::format("rows {} biased {}", rows, biased);
      expect_product(q_out, wq, x.host, where + ", q", on_q ? &bq : nullptr);
      const Activation actual = both.get();
      const std::span<const float> values = actual.values;
      const auto half = static_cast<std::size_t>(rows * 16);
      expect_product(values.first(half), activations(), product(wk, x.host, on_k ? &bk : nullptr), 24,
                     where + ", k");
      expect_product(values.last(half), activations(), product(wv, x.host, on_v ? &bv : nullptr), 24,
                     where + ", v");
    }
}

// On CUDA, one kernel up to 16 rows; with more, two products and their gate.
TEST_P(Linear, GatesOneProductByAnother) {
  for (const auto& [tracks, out, in] :
       {std::tuple{2, 33, 40}, {1, 24, 72}, {18, 16, 24}, {1, 20, 37}, {3, 40, 1100}})
    for (const std::int64_t rows : {1, 8, 9, 16, 17}) {
      Random random(static_cast<unsigned>(rows));
      const RandomWeights gate(matrices(), tracks, 1, out, in, random),
          up(matrices(), tracks, 1, out, in, random);
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
      const double each = on_cuda() ? 2 * unit_roundoff(activations()) : 1e-5;
      expect_close(gate_out.get().values, expected, std::sqrt(static_cast<double>(in)) * each,
                   fmt::format("tracks {} rows {} out {} in {}", tracks, rows, out, in));
    }
}

// Two of equal sizes that lie one after the other are one batch for cuBLASLt.
TEST_P(Linear, TakesPairs) {
  Random random(8);
  const std::vector<WeightSpec> specs(2, {"w", WeightRole::matrix, matrices(), 1, 16, 24});
  backend().plan_weights(specs);
  const RandomWeights k(matrices(), 1, 1, 16, 24, random), v(matrices(), 1, 1, 16, 24, random);
  const TrackWeights k_loaded = k.load(backend()), v_loaded = v.load(backend());
  constexpr std::int64_t kRows = 20, kSize = kRows * 16;
  const Array x(backend(), 1, kRows, 24, activations(), random);
  const Array both(backend(), 1, 3 * kRows, 16, activations());  // the second after a gap
  const LinearJob jobs[] = {{&k_loaded, x.tensor, rows_of(both.tensor, 0, kRows)},
                            {&v_loaded, x.tensor, rows_of(both.tensor, 2 * kRows, kRows)}};
  backend().linear(jobs);
  const Activation actual = both.get();
  const std::span<const float> values = actual.values;
  expect_product(values.first(kSize), activations(), product(k, x.host), 24, "the first");
  expect_product(values.last(kSize), activations(), product(v, x.host), 24, "the second");
  for (std::size_t i = kSize; i < 2 * kSize; ++i) EXPECT_EQ(values[i], 0) << "between the two";
}

// Planned weights lie at even distances, so that one batched product serves all tracks.
TEST_P(Linear, TakesPlannedWeights) {
  Random random(6);
  const std::vector<WeightSpec> specs(3, {"w", WeightRole::matrix, matrices(), 1, 16, 24});
  backend().plan_weights(specs);
  const RandomWeights w(matrices(), 3, 1, 16, 24, random);
  const TrackWeights loaded = w.load(backend());
  const Array x(backend(), 3, 20, 24, activations(), random);
  const Array y(backend(), 3, 20, 16, activations());
  const LinearJob job{&loaded, x.tensor, y.tensor};
  backend().linear({&job, 1});
  expect_product(y, w, x.host, "planned");
}

// On CUDA, for as many rows as the kernel for few rows takes.
TEST_P(Linear, FewRowsAreBatchInvariant) {
  Random random(7);
  const RandomWeights weights(matrices(), 1, 1, 20, 136, random);
  const TrackWeights w = weights.load(backend());
  constexpr std::int64_t kRows = 16;
  const Array x(backend(), 1, kRows, 136, activations(), random);
  const Array all(backend(), 1, kRows, 20, activations()), alone(backend(), 1, kRows, 20, activations());
  const LinearJob job{&w, x.tensor, all.tensor};
  backend().linear({&job, 1});
  for (std::int64_t r = 0; r < kRows; ++r) {
    const LinearJob one{&w, rows_of(x.tensor, r, 1), rows_of(alone.tensor, r, 1)};
    backend().linear({&one, 1});
  }
  EXPECT_EQ(all.get().values, alone.get().values);
}

// The value that a 16-bit pattern stands for.
double half(DType dtype, std::int64_t bits) {
  const int exponent_bits = dtype == DType::float16 ? 5 : 8, mantissa_bits = 15 - exponent_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const auto exponent = static_cast<int>(bits >> mantissa_bits & ((1 << exponent_bits) - 1));
  const auto mantissa = static_cast<double>(bits & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits);
  double value = exponent == 0 ? std::ldexp(mantissa, 1 - bias) : std::ldexp(1 + mantissa, exponent - bias);
  if (exponent == (1 << exponent_bits) - 1) value = mantissa == 0 ? INFINITY : NAN;
  return (bits & 0x8000) != 0 ? -value : value;
}

// Every 16-bit pattern, through a product with 1.
TEST_P(Linear, WidensEveryHalf) {
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    if (on_cuda() && dtype != activations()) continue;
    std::vector<std::uint16_t> bits(65536);
    for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
    FromMemory source(std::as_bytes(std::span(bits)), 2);
    const TrackWeights w{backend().load_weight({"halves", WeightRole::matrix, dtype, 1, 65536, 1}, source)};
    Array x(backend(), 1, 1, 1, activations());
    const Array y(backend(), 1, 1, 65536, activations());
    x.host.values[0] = 1;
    x.put();
    const LinearJob job{&w, x.tensor, y.tensor};
    backend().linear({&job, 1});
    const Activation actual = y.get();
    for (std::int64_t i = 0; i < 65536; ++i) {
      const double expected = half(dtype, i), value = double{actual.at(0, 0, i)};
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(value)) << to_string(dtype) << " bits " << i;
      } else {
        ASSERT_EQ(value, expected) << to_string(dtype) << " bits " << i;
      }
    }
  }
}

}  // namespace
}  // namespace ptrt::testing
