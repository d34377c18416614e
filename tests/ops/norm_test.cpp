#include "ops/fixtures/op_fixture.h"

namespace ptrt::testing {
namespace {

class Norm : public OpTest {
 protected:
  // Of a result that stays float32.
  double not_rounded() const { return on_cuda() ? 1e-5 : 2e-6; }
};
PTRT_EVERY_BACKEND(Norm);

struct Shape {
  std::int64_t tracks, rows, width;
};
const NormRule kRules[] = {{1e-5f}, {1e-2f, true}};

std::string name_of(const Shape& s, const NormRule& rule) {
  return fmt::format("tracks {} rows {} width {}{}", s.tracks, s.rows, s.width,
                     rule.pre_scale ? ", weights first" : "");
}

std::vector<double> normed(const Activation& x, const RandomWeights& w, const NormRule& rule) {
  std::vector<double> all;
  for (std::int64_t t = 0; t < std::ssize(w.tracks()); ++t)
    for (std::int64_t r = 0; r < x.tensor.rows; ++r) {
      const float* row = x.tensor.row(x.tensor.tracks == 1 ? 0 : t, r);
      const std::vector<double> one = rms_normed(row, w, t, x.tensor.width, rule);
      all.insert(all.end(), one.begin(), one.end());
    }
  return all;
}

std::vector<Shape> shapes() {
  std::vector<Shape> all{{3, 1, 1},   {2, 5, 10},   {1, 3, 37},   {2, 2, 64},
                         {18, 2, 40}, {1, 2, 1500}, {2, 1, 5003}, {2, 1, 9000}};
  for (const std::int64_t width : {1, 10, 16, 37, 40, 64, 96, 1000})
    for (const std::int64_t rows : {1, 5, 70}) all.push_back({3, rows, width});
  return all;
}

// Of the float32 streams and of rows inside a sublayer.
TEST_P(Norm, AgreesWithFloat64) {
  for (const Shape& shape : shapes())
    for (const NormRule& rule : kRules) {
      const auto& [tracks, rows, width] = shape;
      Random random(static_cast<unsigned>(width + rows));
      const float size = rule.pre_scale ? 1.0f : 3.0f;
      const RandomWeights weights(DType::float32, tracks, 1, 1, width, random, 1.5f);
      const TrackWeights w = weights.load(backend(), WeightRole::vector);
      const Array stream(backend(), tracks, rows, width, DType::float32, random, size);
      const Array inner(backend(), tracks, rows, width, activations(), random, size);
      const Array out(backend(), tracks, rows, width, activations());
      backend().rms_norm(w, rule, stream.tensor, out.tensor);
      backend().rms_norm(w, rule, stream.tensor, stream.tensor);
      backend().rms_norm(w, rule, inner.tensor, inner.tensor);
      const std::vector<double> expected = normed(stream.host, weights, rule);
      const std::string where = name_of(shape, rule);
      expect_close(out.get().values, expected, once_rounded(2e-6), where + ", the stream");
      expect_close(stream.get().values, expected, not_rounded(), where + ", in place");
      expect_close(inner.get().values, normed(inner.host, weights, rule), once_rounded(2e-6),
                   where + ", inner rows in place");
      if (!on_cuda()) {
        EXPECT_EQ(out.get().values, stream.get().values);
      }
    }
}

TEST_P(Norm, ReadsOneStreamForAllTracksAndSurvivesZeros) {
  Random random(3);
  for (const DType dtype : {DType::float32, DType::bfloat16})
    for (const NormRule& rule : kRules) {
      const RandomWeights weights(dtype, 3, 1, 1, 24, random);
      const TrackWeights w = weights.load(backend(), WeightRole::vector);
      Array x(backend(), 1, 2, 24, DType::float32, random);
      std::fill_n(x.host.tensor.row(0, 1), 24, 0.0f);
      x.put();
      const Array out(backend(), 3, 2, 24, DType::float32);
      backend().rms_norm(w, rule, x.tensor.broadcast(3), out.tensor);
      const Activation actual = out.get();
      expect_close(actual.values, normed(x.host, weights, rule), not_rounded(), "broadcast");
      for (std::int64_t t = 0; t < 3; ++t)
        for (std::int64_t i = 0; i < 24; ++i) EXPECT_EQ(actual.at(t, 1, i), 0.0f);
    }
}

// h += a of rows inside a sublayer, or of float32 ones: what ranks that share a track have added up.
TEST_P(Norm, AfterTheSum) {
  for (const Shape& shape : shapes())
    for (const DType added : {activations(), DType::float32})
      for (const NormRule& rule : kRules) {
        const auto& [tracks, rows, width] = shape;
        Random random(static_cast<unsigned>(width));
        const RandomWeights weights(DType::float32, tracks, 1, 1, width, random);
        const TrackWeights w = weights.load(backend(), WeightRole::vector);
        const Array a(backend(), tracks, rows, width, added, random);
        const Array h(backend(), tracks, rows, width, DType::float32, random), h_in_place(h);
        const Array out(backend(), tracks, rows, width, activations());
        backend().add_rms_norm(a.tensor, h.tensor, w, rule, out.tensor);
        backend().add_rms_norm(a.tensor, h_in_place.tensor, w, rule, h_in_place.tensor);
        Activation sum(h.host);
        for (std::size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += a.host.values[i];
        const std::vector<double> expected = normed(sum, weights, rule);
        const std::string where = fmt::format("{} added, {}", to_string(added), name_of(shape, rule));
        EXPECT_EQ(h.get().values, sum.values) << where;
        expect_close(out.get().values, expected, once_rounded(1e-5), where + ", the norm");
        expect_close(h_in_place.get().values, expected, 1e-5, where + ", in place");
      }
}

// The tests above tell the rules apart where weights are not all alike.
TEST_P(Norm, RulesDiffer) {
  Random random(1);
  const RandomWeights weights(DType::float32, 1, 1, 1, 64, random, 2);
  const TrackWeights w = weights.load(backend(), WeightRole::vector);
  const Array x(backend(), 1, 1, 64, DType::float32, random), first(backend(), 1, 1, 64),
      last(backend(), 1, 1, 64);
  backend().rms_norm(w, {1e-5f, true}, x.tensor, first.tensor);
  backend().rms_norm(w, {1e-5f}, x.tensor, last.tensor);
  const Activation a = first.get(), b = last.get();
  double distance = 0;
  for (std::int64_t i = 0; i < 64; ++i)
    distance = std::max(distance, std::abs(double{a.at(0, 0, i)} - double{b.at(0, 0, i)}));
  EXPECT_GT(distance, 0.05);
}

}  // namespace
}  // namespace ptrt::testing
