#include "op_test.h"

namespace ptrt::testing {
namespace {

class Elementwise : public OpTest {};
class ElementwiseBits : public CpuOpTest {};
PTRT_EVERY_BACKEND(Elementwise);
PTRT_EVERY_TARGET(ElementwiseBits);

const std::vector<std::pair<std::int64_t, std::int64_t>> kRowsAndWidths{{1, 1},   {1, 10},  {3, 37},
                                                                        {70, 40}, {33, 64}, {5, 9000}};

TEST_P(Elementwise, AddSubtractCopy) {
  const auto backend = make_backend();
  for (const auto& [rows, width] : kRowsAndWidths) {
    Random random(static_cast<unsigned>(width));
    const Activation a(2, rows, width, random), h(2, rows, width, random), one(1, rows, width, random);
    Activation sum(h), sum_of_one(h), difference(h), difference_of_one(h), copied(h), copied_one(h);
    backend->add(a.tensor, sum.tensor);
    backend->add(one.tensor.broadcast(2), sum_of_one.tensor);
    backend->subtract(a.tensor, difference.tensor);
    backend->subtract(one.tensor, difference_of_one.tensor);
    backend->copy(a.tensor, copied.tensor);
    backend->copy(one.tensor, copied_one.tensor);
    for (std::size_t i = 0; i < h.values.size(); ++i) {
      const float single = one.values[i % one.values.size()];
      ASSERT_EQ(sum.values[i], h.values[i] + a.values[i]);
      ASSERT_EQ(sum_of_one.values[i], h.values[i] + single);
      ASSERT_EQ(difference.values[i], h.values[i] - a.values[i]);
      ASSERT_EQ(difference_of_one.values[i], h.values[i] - single);
      ASSERT_EQ(copied.values[i], a.values[i]);
      ASSERT_EQ(copied_one.values[i], single);
    }
  }
}

// Only the rows of the view are touched, not those behind them.
TEST_P(Elementwise, KeepsToItsRows) {
  const auto backend = make_backend();
  Random random(2);
  const Activation a(2, 5, 12, random), h(2, 5, 12, random);
  Activation out(h);
  backend->add(a.tensor.first_rows(3), out.tensor.first_rows(3));
  for (std::int64_t t = 0; t < 2; ++t)
    for (std::int64_t r = 0; r < 5; ++r)
      for (std::int64_t i = 0; i < 12; ++i)
        EXPECT_EQ(out.at(t, r, i), r < 3 ? h.at(t, r, i) + a.at(t, r, i) : h.at(t, r, i));
}

TEST_P(Elementwise, Swiglu) {
  const auto backend = make_backend();
  for (const auto& [rows, width] : kRowsAndWidths) {
    Random random(static_cast<unsigned>(width));
    Activation gate(2, rows, width), up(2, rows, width, random);
    for (float& g : gate.values) g = random.uniform(-20, 20);
    const std::vector<float> extremes{0.0f, -0.0f, 100.0f, -100.0f, 3e38f, -3e38f, 1e-30f, -1e-30f};
    std::copy_n(extremes.begin(), std::min(extremes.size(), gate.values.size()), gate.values.begin());
    Activation out(gate);
    backend->swiglu(out.tensor, up.tensor);
    for (std::size_t i = 0; i < out.values.size(); ++i) {
      const double g = double{gate.values[i]};
      const double expected = g / (1 + std::exp(-g)) * double{up.values[i]};
      ASSERT_NEAR(double{out.values[i]}, expected, 1e-6 * std::abs(expected) + 1e-30) << g;
    }
  }
}

// Wherever an element lies: in the middle of vectors or in the rest at the end, alone or among others.
TEST_P(ElementwiseBits, SwigluHangsOnTheElementAlone) {
  Random random(9);
  constexpr std::int64_t kCount = 40000;
  Activation gate(1, 1, kCount), up(1, 1, kCount, random);
  for (float& g : gate.values) g = random.uniform(-10, 10);
  Activation out(gate), alone(gate);
  make_backend(3)->swiglu(out.tensor, up.tensor);
  const auto single = make_backend(1);
  for (std::int64_t i = 0; i < kCount; ++i)
    single->swiglu({&alone.values[static_cast<std::size_t>(i)], 1, 1, 1, 1},
                   {&up.values[static_cast<std::size_t>(i)], 1, 1, 1, 1});
  EXPECT_TRUE(same_bits(out.values.data(), alone.values.data(), kCount));
}

float tree(const std::vector<std::vector<float>>& parts, std::size_t begin, std::size_t end, std::size_t i) {
  if (end - begin == 1) return parts[begin][i];
  std::size_t left = 1;
  while (2 * left < end - begin) left *= 2;
  return tree(parts, begin, begin + left, i) + tree(parts, begin + left, end, i);
}

// The order of the tree is fixed (docs/SPEC.md, Reproducibility): bits, not closeness.
TEST_P(Elementwise, TreeSumAddsInTheFixedOrder) {
  const auto backend = make_backend();
  for (std::size_t n = 1; n <= 20; ++n)
    for (const std::size_t count : {std::size_t{1}, std::size_t{63}, std::size_t{130}, std::size_t{40000}}) {
      if (count == 40000 && n % 8 != 0) continue;
      Random random(static_cast<unsigned>(n));
      std::vector<std::vector<float>> parts(n, std::vector<float>(count));
      std::vector<const float*> pointers;
      for (auto& part : parts) {
        for (float& element : part) element = random.uniform() * std::exp2(random.uniform(-10, 10));
        pointers.push_back(part.data());
      }
      std::vector<float> base(count);
      for (float& element : base) element = random.uniform();
      const float scale = 1.0f / static_cast<float>(n);

      std::vector<float> sum(count), scaled(count), onto(count);
      backend->tree_sum(pointers, static_cast<std::int64_t>(count), 1.0f, nullptr, sum.data());
      backend->tree_sum(pointers, static_cast<std::int64_t>(count), scale, nullptr, scaled.data());
      backend->tree_sum(pointers, static_cast<std::int64_t>(count), scale, base.data(), onto.data());
      std::vector<std::vector<float>> in_place = parts;
      std::vector<const float*> in_place_pointers;
      for (auto& part : in_place) in_place_pointers.push_back(part.data());
      float* last = in_place.back().data();
      backend->tree_sum(in_place_pointers, static_cast<std::int64_t>(count), 1.0f, nullptr, last);
      for (std::size_t i = 0; i < count; ++i) {
        const float expected = tree(parts, 0, n, i);
        ASSERT_EQ(sum[i], expected) << n << " parts, element " << i;
        ASSERT_EQ(last[i], expected) << n << " parts, element " << i;
        const float product = scale * expected;
        ASSERT_EQ(scaled[i], product);
        ASSERT_EQ(onto[i], base[i] + product);
      }
    }
}

// The table kept as it is, and the head's matrix looked up by row.
TEST_P(Elementwise, Embeds) {
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
    for (const WeightRole role : {WeightRole::embedding, WeightRole::tied_embedding}) {
      for (const std::int64_t width : {37, 10, 65, 64}) {
        const auto backend = make_backend();
        Random random(6);
        const RandomWeights table(dtype, 1, 1, 50, width, random);
        const std::vector<std::int32_t> tokens{49, 0, 7, 7, 23};
        Activation x(1, 5, width);
        backend->embed(table.load(*backend, role)[0], tokens, x.tensor);
        for (std::int64_t r = 0; r < 5; ++r)
          for (std::int64_t i = 0; i < width; ++i)
            ASSERT_EQ(double{x.at(0, r, i)}, table.value(0, tokens[static_cast<std::size_t>(r)], i));
      }
    }
}

TEST_P(ElementwiseBits, RefusesTokensOutsideTheTable) {
  Random random(6);
  const RandomWeights table(DType::float32, 1, 1, 50, 8, random);
  Activation x(1, 1, 8);
  for (const std::int32_t token : {-1, 50})
    EXPECT_ANY_THROW(make_backend()->embed(table.tracks()[0], std::vector<std::int32_t>{token}, x.tensor));
}

}  // namespace
}  // namespace ptrt::testing
