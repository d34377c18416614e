// Gates with each activation: elementwise, in products, in experts. Weights of experts by a softmax over all
// of them. Rows of an embedding with a factor.
#include "ops/fixtures/moe_fixture.h"

namespace ptrt::testing {
namespace {

constexpr FfnActivation kActivations[] = {FfnActivation::silu, FfnActivation::gelu_tanh};

std::string name_of(FfnActivation activation) {
  return activation == FfnActivation::silu ? "silu" : "gelu_tanh";
}

class Gate : public OpTest {};
PTRT_EVERY_BACKEND(Gate);

// Small gates, where gelu_tanh is a difference of nearly equal numbers, large ones, and the ends of the range.
TEST_P(Gate, ActivatesElementwise) {
  for (const FfnActivation activation : kActivations)
    for (const auto& [tracks, rows, width] :
         {std::tuple{1, 1, 1}, {2, 3, 37}, {3, 7, 190}, {2, 33, 64}, {2, 5, 9000}}) {
      Random random(static_cast<unsigned>(width));
      Array gate(backend(), tracks, rows, width, activations(), random, 8);
      const Array up(backend(), tracks, rows, width, activations(), random);
      const float large = activations() == DType::float16 ? 6e4f : 3e38f;
      const std::vector<float> extremes{large, -large, 0.0f, -0.0f, 100.0f, -100.0f, 1e-30f, -1e-30f, 1e20f};
      std::copy_n(extremes.begin() + width % 2, std::min(extremes.size() - 1, gate.host.values.size()),
                  gate.host.values.begin());
      if (activations() == DType::float16)
        for (float& value : gate.host.values) value = std::clamp(value, -large, large);
      gate.put();
      backend().glu(activation, gate.tensor, up.tensor);
      const std::vector<float> out = gate.get().values;
      for (std::size_t i = 0; i < out.size(); ++i) {
        const double expected =
            activated(activation, double{gate.host.values[i]}) * double{up.host.values[i]};
        const double size = std::max(1.0, std::abs(expected));
        ASSERT_NEAR(double{out[i]}, expected, once_rounded(2e-6) * size)
            << name_of(activation) << " of " << gate.host.values[i];
      }
    }
}

// On CUDA, one kernel up to 16 rows; with more, two products and their gate.
TEST_P(Gate, OfOneProductByAnother) {
  for (const FfnActivation activation : kActivations)
    for (const auto& [tracks, out, in] : {std::tuple{2, 33, 40}, {18, 16, 24}, {1, 20, 37}, {3, 40, 1100}})
      for (const std::int64_t rows : {1, 8, 9, 16, 17}) {
        Random random(static_cast<unsigned>(rows));
        const float size = 2 / std::sqrt(static_cast<float>(in));
        const RandomWeights gate(matrices(), tracks, 1, out, in, random, size),
            up(matrices(), tracks, 1, out, in, random, size);
        const TrackWeights gate_loaded = gate.load(backend()), up_loaded = up.load(backend());
        const Array x(backend(), tracks, rows, in, activations(), random);
        const Array gate_out(backend(), tracks, rows, out, activations()),
            up_out(backend(), tracks, rows, out, activations());
        backend().gated_linear(activation, {&gate_loaded, x.tensor, gate_out.tensor},
                               {&up_loaded, x.tensor, up_out.tensor});
        std::vector<double> expected;
        for (std::int64_t t = 0; t < tracks; ++t)
          for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t o = 0; o < out; ++o) {
              double sums[2] = {0, 0};
              for (std::int64_t i = 0; i < in; ++i) {
                sums[0] += gate.value(t, o, i) * double{x.host.at(t, r, i)};
                sums[1] += up.value(t, o, i) * double{x.host.at(t, r, i)};
              }
              expected.push_back(activated(activation, sums[0]) * sums[1]);
            }
        // Up to three roundings: of each product, and of theirs.
        expect_close(
            gate_out.get().values, expected, on_cuda() ? 6 * unit_roundoff(activations()) : 1e-5,
            fmt::format("{} tracks {} rows {} out {} in {}", name_of(activation), tracks, rows, out, in));
      }
}

TEST_P(Gate, OfExpertsWithEachKindOfWeights) {
  for (const FfnActivation activation : kActivations)
    for (const bool normalize : {true, false})
      for (const MoeShape& sizes : {MoeShape{4, 2, 24}, {5, 1, 8, 30}, {3, 3, 40}, {40, 4, 16}, {300, 2, 8}})
        for (const std::int64_t rows : {1, 3, 40}) {
          Random random(static_cast<unsigned>(rows + sizes.experts));
          MoeShape shape = sizes;
          shape.activation = activation;
          shape.normalize_top_k = normalize;
          const MoeLayer layer(shape, matrices(), 2, 24, DType::float32, random);
          backend().reserve({.tracks = 2,
                             .rows = rows,
                             .logit_rows = 1,
                             .sequences = 1,
                             .context = 1,
                             .heads = 1,
                             .head_dim = 1,
                             .experts = shape.experts,
                             .top_k = shape.top_k});
          const Array x(backend(), 2, rows, 24, activations(), random);
          std::vector<double> expected;
          for (std::int64_t t = 0; t < 2; ++t)
            for (std::int64_t r = 0; r < rows; ++r) {
              const std::vector<double> row = layer.expected_row(t, x.host.tensor.row(t, r));
              expected.insert(expected.end(), row.begin(), row.end());
            }
          const Activation y = layer.run(backend(), layer.load(backend()), x.tensor, DType::float32);
          expect_close(y.values, expected, on_cuda() ? 20 * unit_roundoff(activations()) : 1e-5,
                       fmt::format("{} normalize {} experts {} top_k {} rows {}", name_of(activation),
                                   normalize, shape.experts, shape.top_k, rows));
        }
}

// A NaN among a row's router logits makes that row NaN, whatever the weights are.
TEST_P(Gate, ARouterThatIsNotFiniteShows) {
  Random random(6);
  MoeShape shape{5, 1, 8};
  shape.normalize_top_k = false;
  const MoeLayer layer(shape, matrices(), 1, 16, DType::float32, random);
  backend().reserve({.tracks = 1,
                     .rows = 2,
                     .logit_rows = 1,
                     .sequences = 1,
                     .context = 1,
                     .heads = 1,
                     .head_dim = 1,
                     .experts = 5,
                     .top_k = 1});
  Array x(backend(), 1, 2, 16, activations(), random);
  x.host.tensor.row(0, 1)[5] = NAN;
  x.put();
  const Activation y = layer.run(backend(), layer.load(backend()), x.tensor, DType::float32);
  for (std::int64_t i = 0; i < 16; ++i) {
    EXPECT_TRUE(std::isfinite(y.at(0, 0, i)));
    EXPECT_TRUE(std::isnan(y.at(0, 1, i)));
  }
}

// The product is rounded once, in float32.
TEST_P(Gate, EmbeddingsWithAFactor) {
  Random random(6);
  const std::vector<std::int32_t> tokens{49, 0, 7}, positions{0, 0, 0}, slots{0, 1, 2}, pages{0, 0, 0};
  backend().reserve({.rows = 3, .logit_rows = 1, .sequences = 3, .context = 16, .heads = 1, .head_dim = 8});
  backend().set_step_inputs(tokens, {positions, slots, pages, 1});
  const float factor = std::sqrt(1152.0f);
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
    for (const WeightRole role : {WeightRole::embedding, WeightRole::tied_embedding})
      for (const std::int64_t width : {37, 64}) {
        if (on_cuda() && role == WeightRole::tied_embedding && dtype != activations()) continue;
        const RandomWeights table(dtype, 1, 1, 50, width, random);
        const Array x(backend(), 1, 3, width);
        backend().embed(table.load(backend(), role)[0], tokens, factor, x.tensor);
        const Activation rows = x.get();
        for (std::size_t r = 0; r < tokens.size(); ++r)
          for (std::int64_t i = 0; i < width; ++i)
            ASSERT_EQ(rows.at(0, static_cast<std::int64_t>(r), i),
                      factor * static_cast<float>(table.value(0, tokens[r], i)));
      }
}

}  // namespace
}  // namespace ptrt::testing
