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
  for (const DType dtype :
       {DType::float32, DType::bfloat16, DType::float16, DType::int8, DType::float8_e4m3}) {
    if (on_cuda() ? dtype != matrices() && size_of(dtype) > 1 : dtype == DType::float8_e4m3) continue;
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

// On CUDA: tiles of rows, of outputs and of inputs that are not full, and several of each; widths that only
// one of the products takes in tiles. Sums are larger than above, and so are the roundings.
TEST_P(Moe, ManyRowsAnExpert) {
  struct Case {
    MoeShape shape;
    std::int64_t tracks, rows, d;
  };
  for (const Case& c : {Case{{3, 2, 136, 0}, 2, 150, 24},
                        {{2, 1, 8, 0}, 1, 300, 136},
                        {{2, 2, 20, 0}, 1, 40, 24},
                        {{2, 2, 24, 0}, 1, 40, 20},
                        {{40, 4, 16, 0}, 1, 330, 24},
                        {{2, 1, 8, 0}, 18, 70, 8}}) {
    for (const DType dtype : {matrices(), DType::int8, DType::float8_e4m3}) {
      if (!on_cuda() && size_of(dtype) == 1) continue;
      Random random(static_cast<unsigned>(c.rows));
      const MoeLayer layer(c.shape, dtype, c.tracks, c.d, DType::float32, random);
      check(layer, c.rows, on_cuda() ? 60 * unit_roundoff(activations()) : 1e-4, random);
    }
  }
}

// All rows go to two experts, the others have none.
TEST_P(Moe, ManyRowsForFewExperts) {
  Random random(2);
  MoeLayer layer({6, 2, 24, 0}, matrices(), 1, 16, DType::float32, random);
  layer.router = RandomWeights(DType::float32, 1, 1, 6, 16, random, 0);
  check(layer, 140, on_cuda() ? 8 * unit_roundoff(activations()) : 1e-4, random);
}

// A NaN among a row's router logits makes that row NaN, also where the expert would not have been chosen,
// and no other row.
TEST_P(Moe, ARouterThatIsNotFiniteShows) {
  for (const float cap : {0.0f, 30.0f}) {
    Random random(6);
    const MoeLayer layer({5, 1, 8, cap}, matrices(), 1, 16, DType::float32, random);
    backend().reserve({.tracks = 1,
                       .rows = 3,
                       .logit_rows = 1,
                       .sequences = 1,
                       .context = 1,
                       .heads = 1,
                       .head_dim = 1,
                       .experts = 5,
                       .top_k = 1});
    MoeLayer::Loaded loaded = layer.load(backend());
    Array x(backend(), 1, 3, 16, activations(), random);
    const Activation sound = layer.run(backend(), loaded, x.tensor, DType::float32);
    x.host.tensor.row(0, 1)[5] = NAN;
    x.put();
    const Activation y = layer.run(backend(), loaded, x.tensor, DType::float32);
    for (std::int64_t i = 0; i < 16; ++i) {
      EXPECT_TRUE(std::isnan(y.tensor.row(0, 1)[i]));
      EXPECT_EQ(y.tensor.row(0, 0)[i], sound.tensor.row(0, 0)[i]);
      EXPECT_EQ(y.tensor.row(0, 2)[i], sound.tensor.row(0, 2)[i]);
    }
    for (std::size_t expert = 0; expert < 5; ++expert) {
      std::vector<float> router(5 * 16, 0.0f);
      router[expert * 16 + 3] = NAN;
      FromMemory source(std::as_bytes(std::span(router)), 16 * sizeof(float));
      loaded.router = {
          backend().load_weight({"router", WeightRole::router, DType::float32, 1, 5, 16}, source)};
      for (const float element : layer.run(backend(), loaded, x.tensor, DType::float32).values)
        EXPECT_TRUE(std::isnan(element)) << "expert " << expert;
    }
  }
}

}  // namespace
}  // namespace ptrt::testing
