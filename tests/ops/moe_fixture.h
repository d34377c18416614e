// A mixture-of-experts layer with random weights, and its result in float64.
#pragma once

#include <numeric>

#include "ops/op_fixture.h"

namespace ptrt::testing {

// The weights and the scratch that a call needs.
struct MoeLayer {
  MoeLayer(const MoeShape& moe_shape, DType dtype, std::int64_t track_count, std::int64_t width,
           DType router_dtype, Random& random)
      : shape(moe_shape),
        tracks(track_count),
        d(width),
        router(router_dtype, tracks, 1, shape.experts, d, random),
        gate(dtype, tracks, shape.experts, shape.ffn_size, d, random),
        up(dtype, tracks, shape.experts, shape.ffn_size, d, random),
        down(dtype, tracks, shape.experts, d, shape.ffn_size, random) {}

  struct Loaded {
    TrackWeights router, gate, up, down;
  };
  Loaded load(Backend& backend) const {
    return {router.load(backend, WeightRole::router), gate.load(backend), up.load(backend),
            down.load(backend)};
  }
  Activation run(Backend& backend, const Loaded& loaded, const Tensor& x, DType y_dtype) const {
    const std::int64_t slots = x.rows * shape.top_k;
    const DType dtype = activation_dtype(backend);
    const Array y(backend, tracks, x.rows, d, y_dtype), logits(backend, tracks, x.rows, shape.experts),
        gate_out(backend, tracks, slots, shape.ffn_size, dtype),
        up_out(backend, tracks, slots, shape.ffn_size, dtype), expert_out(backend, tracks, slots, d, dtype);
    backend.moe_ffn({shape, &loaded.router, &loaded.gate, &loaded.up, &loaded.down, x, y.tensor,
                     logits.tensor, gate_out.tensor, up_out.tensor, expert_out.tensor});
    return y.get();
  }
  // On the host.
  Activation run(Backend& backend, const Tensor& x) const {
    return run(backend, load(backend), x, DType::float32);
  }
  std::vector<double> expected_row(std::int64_t t, const float* x) const;

  MoeShape shape;
  std::int64_t tracks, d;
  RandomWeights router, gate, up, down;
};

inline std::vector<double> MoeLayer::expected_row(std::int64_t t, const float* x) const {
  const auto [experts, top_k, ffn_size, cap] = shape;
  const auto dot = [&](const RandomWeights& w, std::int64_t row) {
    double sum = 0;
    for (std::int64_t i = 0; i < d; ++i) sum += w.value(t, row, i) * double{x[i]};
    return sum;
  };
  std::vector<double> logits;
  for (std::int64_t e = 0; e < experts; ++e) {
    logits.push_back(dot(router, e));
    if (cap != 0) logits.back() = double{cap} * std::tanh(logits.back() / double{cap});
  }
  std::vector<std::int64_t> order(static_cast<std::size_t>(experts));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  double total = 0;
  std::vector<double> y(static_cast<std::size_t>(d));
  for (std::int64_t slot = 0; slot < top_k; ++slot) {
    const std::int64_t e = order[static_cast<std::size_t>(slot)];
    const double weight = std::exp(logits[static_cast<std::size_t>(e)]);
    total += weight;
    for (std::int64_t f = 0; f < ffn_size; ++f) {
      const double g = dot(gate, e * ffn_size + f);
      const double hidden = g / (1 + std::exp(-g)) * dot(up, e * ffn_size + f);
      for (std::int64_t i = 0; i < d; ++i)
        y[static_cast<std::size_t>(i)] += weight * hidden * down.value(t, e * d + i, f);
    }
  }
  for (double& element : y) element /= total;
  return y;
}

}  // namespace ptrt::testing
