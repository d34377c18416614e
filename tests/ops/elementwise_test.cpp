#include "ops/fixtures/op_fixture.h"

namespace ptrt::testing {
namespace {

class Elementwise : public OpTest {};
PTRT_EVERY_BACKEND(Elementwise);

struct Case {
  std::int64_t tracks, rows, width;
};
const std::vector<Case> kCases{{1, 1, 1},  {2, 1, 1},   {2, 1, 10},  {2, 3, 37},  {3, 7, 190},
                               {18, 1, 8}, {2, 70, 40}, {2, 33, 64}, {2, 5, 9000}};

TEST_P(Elementwise, AddSubtractCopy) {
  for (const auto& [tracks, rows, width] : kCases) {
    Random random(static_cast<unsigned>(width));
    const Array a(backend(), tracks, rows, width, activations(), random),
        one_a(backend(), 1, rows, width, activations(), random),
        x(backend(), tracks, rows, width, DType::float32, random),
        one(backend(), 1, rows, width, DType::float32, random),
        h(backend(), tracks, rows, width, DType::float32, random),
        rounded(backend(), tracks, rows, width, activations());
    const auto on_h = [&](const auto& op) {
      const Array out(h);
      op(out.tensor);
      return out.get().values;
    };
    const auto sum = on_h([&](const Tensor& to) { backend().add(a.tensor, to); });
    const auto sum_of_one =
        on_h([&](const Tensor& to) { backend().add(one_a.tensor.broadcast(tracks), to); });
    const auto difference = on_h([&](const Tensor& to) { backend().subtract(x.tensor, to); });
    const auto less_one = on_h([&](const Tensor& to) { backend().subtract(one.tensor, to); });
    const auto less_every =
        on_h([&](const Tensor& to) { backend().subtract(one.tensor.broadcast(tracks), to); });
    const auto copied = on_h([&](const Tensor& to) { backend().copy(x.tensor, to); });
    const auto copied_one = on_h([&](const Tensor& to) { backend().copy(one.tensor, to); });
    const auto copied_every =
        on_h([&](const Tensor& to) { backend().copy(one.tensor.broadcast(tracks), to); });
    backend().copy(h.tensor, rounded.tensor);
    const auto rounded_h = rounded.get().values;
    for (std::size_t i = 0; i < h.host.values.size(); ++i) {
      const std::size_t in_one = i % one.host.values.size();
      const float value = h.host.values[i], single = one.host.values[in_one];
      ASSERT_EQ(sum[i], value + a.host.values[i]);
      ASSERT_EQ(sum_of_one[i], value + one_a.host.values[in_one]);
      ASSERT_EQ(difference[i], value - x.host.values[i]);
      ASSERT_EQ(less_one[i], value - single);
      ASSERT_EQ(less_every[i], value - single);
      ASSERT_EQ(copied[i], x.host.values[i]);
      ASSERT_EQ(copied_one[i], single);
      ASSERT_EQ(copied_every[i], single);
      ASSERT_EQ(rounded_h[i], rounded_to(activations(), value));
    }
  }
}

// Only the rows of the view change, not those after them.
TEST_P(Elementwise, KeepsToItsRows) {
  Random random(2);
  const Array a(backend(), 2, 5, 12, activations(), random), h(backend(), 2, 5, 12, DType::float32, random);
  backend().add(a.tensor.first_rows(3), h.tensor.first_rows(3));
  const Activation out = h.get();
  for (std::int64_t t = 0; t < 2; ++t)
    for (std::int64_t r = 0; r < 5; ++r)
      for (std::int64_t i = 0; i < 12; ++i)
        EXPECT_EQ(out.at(t, r, i), r < 3 ? h.host.at(t, r, i) + a.host.at(t, r, i) : h.host.at(t, r, i));
}

TEST_P(Elementwise, Swiglu) {
  for (const auto& [tracks, rows, width] : kCases) {
    Random random(static_cast<unsigned>(width));
    Array gate(backend(), tracks, rows, width, activations(), random, 20);
    const Array up(backend(), tracks, rows, width, activations(), random);
    const float large = activations() == DType::float16 ? 6e4f : 3e38f;
    const std::vector<float> extremes{large, -large, 0.0f, -0.0f, 100.0f, -100.0f, 1e-30f, -1e-30f};
    std::copy_n(extremes.begin() + width % 2, std::min(extremes.size() - 1, gate.host.values.size()),
                gate.host.values.begin());
    gate.put();
    backend().glu(FfnActivation::silu, gate.tensor, up.tensor);
    const std::vector<float> out = gate.get().values;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const double g = double{gate.host.values[i]};
      const double expected = g / (1 + std::exp(-g)) * double{up.host.values[i]};
      const double tolerance =
          on_cuda() ? once_rounded(0) * std::max(1.0, std::abs(expected)) : 1e-6 * std::abs(expected) + 1e-30;
      ASSERT_NEAR(double{out[i]}, expected, tolerance) << g;
    }
  }
}

// A product beyond the range of the type is infinite, not the largest number.
TEST_P(Elementwise, SwigluBeyondTheRange) {
  Array gate(backend(), 1, 1, 3, activations()), up(backend(), 1, 1, 3, activations());
  const float large = activations() == DType::float16 ? 6e4f : 3e38f;
  gate.host.values = {large, large, 1};
  up.host.values = {2, -2, 0};
  gate.put();
  up.put();
  backend().glu(FfnActivation::silu, gate.tensor, up.tensor);
  EXPECT_EQ(gate.get().values, (std::vector<float>{INFINITY, -INFINITY, 0}));
}

float tree(const Activation& parts, std::int64_t begin, std::int64_t end, std::int64_t i) {
  if (end - begin == 1) return parts.at(begin, 0, i);
  std::int64_t left = 1;
  while (2 * left < end - begin) left *= 2;
  return tree(parts, begin, begin + left, i) + tree(parts, begin + left, end, i);
}

// The order of the tree is fixed (docs/SPEC.md, Reproducibility): bits, not closeness.
TEST_P(Elementwise, TreeSumAddsInTheFixedOrder) {
  for (const std::int64_t n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 64})
    for (const std::int64_t count : {1, 63, 130, 1300, 40000}) {
      if (count == 40000 && (n % 8 != 0 || n > 20)) continue;
      Random random(static_cast<unsigned>(n));
      Array parts(backend(), n, 1, count);
      for (float& element : parts.host.values)
        element = random.uniform() * std::exp2(random.uniform(-10, 10));
      parts.put();
      const Array base(backend(), 1, 1, count, DType::float32, random), sum(backend(), 1, 1, count),
          scaled(backend(), 1, 1, count), onto(backend(), 1, 1, count);
      std::vector<const float*> pointers;
      for (std::int64_t p = 0; p < n; ++p) pointers.push_back(parts.tensor.row(p, 0));
      const float scale = 1.0f / static_cast<float>(n);
      backend().tree_sum(pointers, count, 1.0f, nullptr, sum.tensor.row(0, 0));
      backend().tree_sum(pointers, count, scale, nullptr, scaled.tensor.row(0, 0));
      backend().tree_sum(pointers, count, scale, base.tensor.row(0, 0), onto.tensor.row(0, 0));
      backend().tree_sum(pointers, count, 1.0f, nullptr, parts.tensor.row(n - 1, 0));
      const Activation actual = sum.get(), times = scaled.get(), added = onto.get(), in_place = parts.get();
      for (std::int64_t i = 0; i < count; ++i) {
        const float expected = tree(parts.host, 0, n, i), product = scale * expected;
        ASSERT_EQ(actual.at(0, 0, i), expected) << n << " parts, element " << i;
        ASSERT_EQ(in_place.at(n - 1, 0, i), expected) << n << " parts, element " << i;
        ASSERT_EQ(times.at(0, 0, i), product) << n << " parts, element " << i;
        ASSERT_EQ(added.at(0, 0, i), base.host.at(0, 0, i) + product) << n << " parts, element " << i;
      }
    }
}

}  // namespace
}  // namespace ptrt::testing
