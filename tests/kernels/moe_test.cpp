#include "kernels/cpu/ops/moe.h"

#include <algorithm>
#include <numeric>

#include "op_test.h"

namespace ptrt::testing {
namespace {

class MoeFfn : public OpTest {};
class MoeBits : public CpuOpTest {};
PTRT_EVERY_BACKEND(MoeFfn);
PTRT_EVERY_TARGET(MoeBits);

// A layer of experts with the scratch that a call needs.
struct Layer {
  Layer(const MoeShape& moe_shape, DType dtype, std::int64_t track_count, std::int64_t width, Random& random)
      : shape(moe_shape),
        tracks(track_count),
        d(width),
        router(dtype == DType::int8 ? DType::bfloat16 : dtype, tracks, 1, shape.experts, d, random),
        gate(dtype, tracks, shape.experts, shape.ffn_size, d, random),
        up(dtype, tracks, shape.experts, shape.ffn_size, d, random),
        down(dtype, tracks, shape.experts, d, shape.ffn_size, random) {}

  Activation run(Backend& backend, const Tensor& x) const {
    const std::int64_t slots = x.rows * shape.top_k;
    Activation y(tracks, x.rows, d), logits(tracks, x.rows, shape.experts),
        gate_out(tracks, slots, shape.ffn_size), up_out(tracks, slots, shape.ffn_size),
        expert_out(tracks, slots, d);
    const TrackWeights router_weights = router.load(backend, WeightRole::router),
                       gate_weights = gate.load(backend), up_weights = up.load(backend),
                       down_weights = down.load(backend);
    backend.moe_ffn({shape, &router_weights, &gate_weights, &up_weights, &down_weights, x, y.tensor,
                     logits.tensor, gate_out.tensor, up_out.tensor, expert_out.tensor});
    return y;
  }

  MoeShape shape;
  std::int64_t tracks, d;
  RandomWeights router, gate, up, down;
};

std::vector<double> expected_row(const Layer& layer, std::int64_t t, const float* x) {
  const auto [experts, top_k, ffn_size, cap] = layer.shape;
  const auto dot = [&](const RandomWeights& w, std::int64_t row) {
    double sum = 0;
    for (std::int64_t i = 0; i < layer.d; ++i) sum += w.value(t, row, i) * double{x[i]};
    return sum;
  };
  std::vector<double> logits;
  for (std::int64_t e = 0; e < experts; ++e) {
    logits.push_back(dot(layer.router, e));
    if (cap != 0) logits.back() = double{cap} * std::tanh(logits.back() / double{cap});
  }
  std::vector<std::int64_t> order(static_cast<std::size_t>(experts));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  double total = 0;
  std::vector<double> y(static_cast<std::size_t>(layer.d));
  for (std::int64_t slot = 0; slot < top_k; ++slot) {
    const std::int64_t e = order[static_cast<std::size_t>(slot)];
    const double weight = std::exp(logits[static_cast<std::size_t>(e)]);
    total += weight;
    for (std::int64_t f = 0; f < ffn_size; ++f) {
      const double g = dot(layer.gate, e * ffn_size + f);
      const double hidden = g / (1 + std::exp(-g)) * dot(layer.up, e * ffn_size + f);
      for (std::int64_t i = 0; i < layer.d; ++i)
        y[static_cast<std::size_t>(i)] += weight * hidden * layer.down.value(t, e * layer.d + i, f);
    }
  }
  for (double& element : y) element /= total;
  return y;
}

TEST_P(MoeFfn, AgreesWithFloat64) {
  const auto backend = make_backend();
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16, DType::int8})
    for (const MoeShape& shape : {MoeShape{4, 2, 24, 0},
                                  {4, 2, 24, 0.5f},
                                  {5, 1, 7, 30},
                                  {3, 3, 40, 0},
                                  {1, 1, 8, 0},
                                  {16, 4, 16, 0}})
      for (const std::int64_t rows : {1, 3, 40}) {
        Random random(static_cast<unsigned>(rows + shape.experts));
        const Layer layer(shape, dtype, 2, 20, random);
        const Activation x(2, rows, 20, random);
        const Activation y = layer.run(*backend, x.tensor);
        for (std::int64_t t = 0; t < 2; ++t)
          for (std::int64_t r = 0; r < rows; ++r) {
            const std::vector<double> expected = expected_row(layer, t, x.tensor.row(t, r));
            for (std::int64_t i = 0; i < 20; ++i)
              expect_close(y.at(t, r, i), expected[static_cast<std::size_t>(i)], 1e-5,
                           fmt::format("experts {} top_k {} row {}", shape.experts, shape.top_k, r));
          }
      }
}

const std::vector<std::pair<Compute, DType>> kComputes{
    {Compute::float32, DType::bfloat16}, {Compute::bfloat16, DType::bfloat16}, {Compute::int8, DType::int8}};

TEST_P(MoeBits, AgreeWithTheReference) {
  for (const auto& [compute, dtype] : kComputes) {
    const auto fast = make_backend({.threads = 2, .compute = compute});
    ReferenceBackend reference({.compute = compute});
    Random random(3);
    const Layer layer({5, 2, 40, 3}, dtype, 2, 70, random);
    const Activation x(2, 30, 70, random);
    const Activation y = layer.run(*fast, x.tensor), expected = layer.run(reference, x.tensor);
    // The down product rounds what the gate product gave: a rounding edge may fall to either side.
    for (std::size_t i = 0; i < y.values.size(); ++i)
      expect_close(double{y.values[i]}, double{expected.values[i]}, compute == Compute::float32 ? 1e-4 : 1e-2,
                   std::string(to_string(compute)));
  }
}

TEST_P(MoeBits, HangOnTheRowAlone) {
  Random random(1);
  // At the second width products of few rows take several panels side by side.
  for (const auto& [width, rows] : {std::pair<std::int64_t, std::int64_t>{48, 60}, {520, 9}})
    for (const auto& [compute, dtype] : kComputes) {
      const Layer layer({6, 2, 40, 5}, dtype, 2, width, random);
      const Activation x(2, rows, width, random);
      for (const int threads : {1, 2, 3}) {
        const auto backend = make_backend({.threads = threads, .compute = compute});
        const Activation batch = layer.run(*backend, x.tensor);
        for (std::int64_t r = 0; r < rows; ++r) {
          const Activation alone =
              layer.run(*backend, {x.tensor.row(0, r), 2, 1, width, x.tensor.track_stride});
          for (std::int64_t t = 0; t < 2; ++t)
            ASSERT_TRUE(same_bits(alone.tensor.row(t, 0), batch.tensor.row(t, r), width))
                << to_string(compute) << " width " << width << " row " << r;
        }
      }
    }
}

TEST(MoeRouting, TakesTheLowerIndexOfEquals) {
  std::vector<float> logits{1, 3, 2, 3, 0, 2};
  std::vector<ExpertChoice> chosen(4);
  route_row(logits, 0, chosen);
  EXPECT_EQ(chosen[0].expert, 1);
  EXPECT_EQ(chosen[1].expert, 3);
  EXPECT_EQ(chosen[2].expert, 2);
  EXPECT_EQ(chosen[3].expert, 5);
  EXPECT_EQ(chosen[0].weight, chosen[1].weight);
  EXPECT_NEAR(chosen[0].weight + chosen[1].weight + chosen[2].weight + chosen[3].weight, 1, 1e-6);
  EXPECT_NEAR(chosen[2].weight / chosen[0].weight, std::exp(-1.0), 1e-6);
}

}  // namespace
}  // namespace ptrt::testing
