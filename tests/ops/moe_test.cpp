#include "ops/fixtures/moe_fixture.h"

namespace ptrt::testing {
namespace {

class Moe : public OpTest {
 protected:
  // Against float64, with results in the type of activations and in float32, which ranks that share a track
  // add up.
  void check(const MoeLayer& layer, std::int64_t rows, double tolerance, Random& random) {
    const auto& [shape, tracks, d] = std::tie(layer.shape, layer.tracks, layer.d);
    backend().reserve({.tracks = tracks,
                       .rows = rows,
                       .logit_rows = 1,
                       .sequences = 1,
                       .context = 1,
                       .heads = 1,
                       .head_dim = 1,
                       .experts = shape.experts,
                       .top_k = shape.top_k});
    const Array x(backend(), tracks, rows, d, activations(), random);
    std::vector<double> expected;
    for (std::int64_t t = 0; t < tracks; ++t)
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::vector<double> row = layer.expected_row(t, x.host.tensor.row(t, r));
        expected.insert(expected.end(), row.begin(), row.end());
      }
    const std::string where =
        fmt::format("{}, experts {} top_k {} ffn {} rows {} d {}", to_string(layer.gate.dtype()),
                    shape.experts, shape.top_k, shape.ffn_size, rows, d);
    const MoeLayer::Loaded loaded = layer.load(backend());
    for (const DType y_dtype : {activations(), DType::float32}) {
      const Activation y = layer.run(backend(), loaded, x.tensor, y_dtype);
      expect_close(y.values, expected, tolerance, where + fmt::format(" in {}", to_string(y_dtype)));
    }
  }
  void check(DType dtype, const MoeShape& shape, std::int64_t tracks, std::int64_t rows, std::int64_t d) {
    Random random(static_cast<unsigned>(rows + shape.experts));
    const DType router = on_cuda() ? DType::float32 : dtype == DType::int8 ? DType::bfloat16 : dtype;
    const MoeLayer layer(shape, dtype, tracks, d, router, random);
    // On CUDA four roundings in a row, of sums of several units.
    check(layer, rows, on_cuda() ? 20 * unit_roundoff(activations()) : 1e-5, random);
  }
};
PTRT_EVERY_BACKEND(Moe);

TEST_P(Moe, AgreesWithFloat64) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16, DType::int8}) {
    if (on_cuda() && dtype != matrices()) continue;
    for (const MoeShape& shape : {MoeShape{4, 2, 24, 0},
                                  {4, 2, 24, 0.5f},
                                  {5, 1, 7, 30},
                                  {3, 3, 40, 0},
                                  {1, 1, 8, 0},
                                  {16, 4, 16, 0}})
      for (const std::int64_t rows : {1, 3, 20, 40}) check(dtype, shape, 2, rows, on_cuda() ? 24 : 20);
    check(dtype, {300, 2, 8, 0}, 1, 2, 20);
    check(dtype, {2, 1, 8, 0}, 18, 2, 8);
    check(dtype, {2, 1, 16, 0}, 1, 150, 16);
    check(dtype, {11, 3, 8, 0}, 3, 67, 16);  // slots and experts that fill no warp and no block
  }
}

// A router of zeros: the lowest experts are chosen, more of them than a warp has lanes.
TEST_P(Moe, TakesTheLowerIndexOfEquals) {
  Random random(1);
  MoeLayer layer({70, 40, 8, 0}, matrices(), 1, 16, DType::float32, random);
  layer.router = RandomWeights(DType::float32, 1, 1, 70, 16, random, 0);
  check(layer, 2, on_cuda() ? 8 * unit_roundoff(activations()) : 1e-4, random);
}

}  // namespace
}  // namespace ptrt::testing
