// Rows picked from a table of embeddings and from activations.
#include "ops/fixtures/op_fixture.h"

namespace ptrt::testing {
namespace {

class Embed : public OpTest {
 protected:
  // Tables are kept as they are; those that are also the head's matrix become the type of activations on CUDA.
  bool keeps(DType dtype, WeightRole role) {
    return !on_cuda() || role == WeightRole::embedding || dtype == activations();
  }
  void set_step(std::span<const std::int32_t> tokens) {
    const auto rows = static_cast<std::int64_t>(tokens.size());
    const WorkLimits limits{
        .rows = rows, .logit_rows = 1, .sequences = rows, .context = 16, .heads = 1, .head_dim = 8};
    backend().reserve(limits);
    std::vector<std::int32_t> positions(tokens.size(), 0), slots(tokens.size()), pages(tokens.size(), 0);
    for (std::size_t r = 0; r < slots.size(); ++r) slots[r] = static_cast<std::int32_t>(r);
    backend().set_step_inputs(tokens, {positions, slots, pages, 1});
  }
};
PTRT_EVERY_BACKEND(Embed);

TEST_P(Embed, LooksUpRows) {
  Random random(6);
  const std::vector<std::int32_t> tokens{49, 0, 7, 7, 23}, picked{4, 0, 0, 1};
  set_step(tokens);
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
    for (const WeightRole role : {WeightRole::embedding, WeightRole::tied_embedding})
      for (const std::int64_t width : {37, 10, 65, 64}) {
        if (!keeps(dtype, role)) continue;
        const RandomWeights table(dtype, 1, 1, 50, width, random);
        const Weight loaded = table.load(backend(), role)[0];
        const Array x(backend(), 1, 5, width), some(backend(), 1, 4, width);
        backend().embed(loaded, tokens, 1, x.tensor);
        backend().gather_rows(x.tensor, picked, some.tensor);
        const Activation rows = x.get(), gathered = some.get();
        for (std::int64_t i = 0; i < width; ++i) {
          for (std::size_t r = 0; r < tokens.size(); ++r)
            ASSERT_EQ(double{rows.at(0, static_cast<std::int64_t>(r), i)}, table.value(0, tokens[r], i));
          for (std::size_t r = 0; r < picked.size(); ++r)
            ASSERT_EQ(gathered.at(0, static_cast<std::int64_t>(r), i), rows.at(0, picked[r], i));
        }
      }
}

TEST_P(Embed, RefusesTokensOutsideTheTable) {
  if (on_reference()) GTEST_SKIP() << "the scalar reference trusts its caller";
  Random random(6);
  const std::vector<std::int32_t> inside(1, 0);
  set_step(inside);
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
    for (const WeightRole role : {WeightRole::embedding, WeightRole::tied_embedding}) {
      const RandomWeights table(dtype, 1, 1, 50, 8, random);
      const Weight loaded = table.load(backend(), role)[0];
      const Array x(backend(), 1, 1, 8);
      for (const std::int32_t token : {-1, 50})
        EXPECT_ANY_THROW(backend().embed(loaded, std::vector<std::int32_t>{token}, 1, x.tensor));
    }
}

// Every 16-bit pattern, of a table and of a head that is also the table.
TEST_P(Embed, WidensEveryHalf) {
  constexpr std::int64_t kWidth = 257;
  std::vector<std::int32_t> tokens(256);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(255 - i);
  set_step(tokens);
  for (const DType dtype : {DType::float16, DType::bfloat16})
    for (const WeightRole role : {WeightRole::embedding, WeightRole::tied_embedding}) {
      if (!keeps(dtype, role)) continue;
      std::vector<std::uint16_t> bits(256 * kWidth);
      for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
      const Weight stored{bits.data(), dtype, 1, 256, kWidth};
      FromMemory source(std::as_bytes(std::span(bits)), kWidth * 2);
      const Weight table = backend().load_weight({"table", role, dtype, 1, 256, kWidth}, source);
      const Array x(backend(), 1, 256, kWidth);
      backend().embed(table, tokens, 1, x.tensor);
      const Activation actual = x.get();
      for (std::int64_t r = 0; r < 256; ++r)
        for (std::int64_t i = 0; i < kWidth; ++i) {
          const float expected = weight_element(stored, (255 - r) * kWidth + i), value = actual.at(0, r, i);
          ASSERT_TRUE(std::isnan(expected) ? std::isnan(value) : value == expected)
              << "row " << r << " column " << i;
        }
    }
}

// More rows than one launch takes.
TEST_P(Embed, GathersManyRows) {
  constexpr std::int64_t kRows = 1030, kFrom = 7;
  Random random(1);
  const Array x(backend(), 1, kFrom, 3, DType::float32, random), out(backend(), 1, kRows, 3);
  std::vector<std::int32_t> rows;
  for (std::int64_t r = 0; r < kRows; ++r) rows.push_back(random.below(kFrom));
  backend().gather_rows(x.tensor, rows, out.tensor);
  const Activation actual = out.get();
  for (std::int64_t r = 0; r < kRows; ++r)
    for (std::int64_t i = 0; i < 3; ++i)
      ASSERT_EQ(actual.at(0, r, i), x.host.at(0, rows[static_cast<std::size_t>(r)], i));
}

}  // namespace
}  // namespace ptrt::testing
