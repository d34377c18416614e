#include "ops/fixtures/attention_fixture.h"

namespace ptrt::testing {
namespace {

class Attention : public AttentionTest {
 protected:
  void check_large_scores(const AttentionTypes& types);
};
// CPU backends with and without bfloat16 products, for which attention has a kernel of its own.
INSTANTIATE_TEST_SUITE_P(Every, Attention, ::testing::ValuesIn(backends_on(simd_targets())), param_name);

TEST_P(Attention, AgreesWithFloat64ForEveryHeadSize) {
  for_each_types([&](const AttentionTypes& types) {
    for (const std::int64_t head_dim : thinned<std::int64_t>({1, 10, 16, 32, 37, 64, 80, 96, 128, 256}))
      check({4, 2, head_dim, 0}, 2, types);
  });
}

TEST_P(Attention, AgreesWithFloat64ForEveryScale) {
  for_each_types([&](const AttentionTypes& types) {
    for (const std::int64_t head_dim : thinned<std::int64_t>({16, 37, 64, 80, 128, 256}))
      for (const float scale : {0.03f, 0.1f}) {
        AttentionShape shape{4, 2, head_dim};
        shape.scale = scale;
        check(shape, 1, types);
      }
  });
}

TEST_P(Attention, AgreesWithFloat64ForEveryWindow) {
  for_each_types([&](const AttentionTypes& types) {
    for (const std::int64_t window : {1, 2, 7, 15, 16, 17, 31, 32, 40, 63, 64, 65, 70, 128, 149, 150, 500})
      check({2, 2, 24, window}, 1, types);
  });
}

TEST_P(Attention, AgreesWithFloat64ForEveryGrouping) {
  for_each_types([&](const AttentionTypes& types) {
    for (const auto& [heads, kv_heads] :
         {std::pair{1, 1}, {3, 1}, {5, 1}, {8, 1}, {6, 2}, {6, 6}, {20, 1}, {40, 2}})
      check({heads, kv_heads, 20, 21}, 1, types);
  });
}

// Large scores: the running maximum must keep everything in range.
void Attention::check_large_scores(const AttentionTypes& types) {
  Random random(8);
  const AttentionShape shape{1, 1, 16, 0};
  const std::vector<std::int32_t> positions{39}, slots{0};
  KvPages pages(backend(), shape, 1, 1, 40, types.kv, random);
  pages.fill({40}, random);
  Array q(backend(), 1, 1, 16, activations(), random, 1000);
  const Activation out = attend(shape, pages, q, positions, slots);
  std::int64_t largest = 0;
  double largest_score = -INFINITY;
  for (std::int64_t p = 0; p < 40; ++p) {
    double score = 0;
    for (std::int64_t j = 0; j < 16; ++j)
      score += double{q.host.at(0, 0, j)} * double{pages.key(0, 0, p, 0, j)};
    if (score > largest_score) largest = p, largest_score = score;
  }
  for (std::int64_t j = 0; j < 16; ++j)
    EXPECT_NEAR(out.at(0, 0, j), pages.value(0, 0, largest, 0, j), 1e-5) << types.name();
}

TEST_P(Attention, SurvivesLargeScores) {
  for_each_types([&](const AttentionTypes& types) { check_large_scores(types); });
}

// The order in which a sequence's pages lie in the pool does not matter.
TEST_P(Attention, IndependentOfThePlacesOfPages) {
  constexpr std::int32_t kLength = 200;
  const AttentionShape shape{3, 1, 37, 0};
  for_each_types([&](const AttentionTypes& types) {
    std::vector<std::vector<float>> results;
    for (const unsigned order : {1u, 2u}) {
      Random page_order(order), content(7);
      KvPages pages(backend(), shape, 1, 1, kLength, types.kv, page_order);
      pages.fill({kLength}, content);
      const Array q(backend(), 1, kLength, shape.heads * shape.head_dim, activations(), content);
      std::vector<std::int32_t> positions(kLength);
      std::iota(positions.begin(), positions.end(), 0);
      const std::vector<std::int32_t> slots(kLength, 0);
      results.push_back(attend(shape, pages, q, positions, slots).values);
    }
    EXPECT_EQ(results[0], results[1]) << types.name();
  });
}

}  // namespace
}  // namespace ptrt::testing
