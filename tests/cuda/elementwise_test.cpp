#include "device_test.h"

namespace ptrt::testing {
namespace {

class DeviceElementwise : public DeviceTest {};
PTRT_EVERY_DEVICE_AND_TYPE(DeviceElementwise);

struct Case {
  std::int64_t tracks, rows, width;
};
const std::vector<Case> kCases{{1, 1, 1}, {2, 3, 37}, {3, 7, 190}, {18, 1, 8}};

TEST_P(DeviceElementwise, AddSubtractCopy) {
  for (const auto& [tracks, rows, width] : kCases) {
    Random random(static_cast<unsigned>(width));
    const OnDevice a(backend(), tracks, rows, width, inner(), random);
    const OnDevice one(backend(), 1, rows, width, DType::float32, random);
    const OnDevice h(backend(), tracks, rows, width, DType::float32, random);
    const OnDevice sum(backend(), tracks, rows, width, DType::float32);
    OnDevice copied_inner(backend(), tracks, rows, width, inner());
    backend().copy(h.tensor, sum.tensor);
    backend().add(a.tensor, sum.tensor);
    const auto with_a = sum.get();
    backend().copy(h.tensor, sum.tensor);
    backend().subtract(one.tensor.broadcast(tracks), sum.tensor);
    const auto without_one = sum.get();
    backend().copy(one.tensor.broadcast(tracks), sum.tensor);
    const auto copies = sum.get();
    backend().copy(h.tensor, copied_inner.tensor);
    const auto rounded = copied_inner.get();
    for (std::size_t i = 0; i < h.host.values.size(); ++i) {
      const float single = one.host.values[i % one.host.values.size()], value = h.host.values[i];
      ASSERT_EQ(with_a[i], value + a.host.values[i]);
      ASSERT_EQ(without_one[i], value - single);
      ASSERT_EQ(copies[i], single);
      ASSERT_EQ(rounded[i], rounded_to(inner(), value));
    }
  }
}

TEST_P(DeviceElementwise, Swiglu) {
  for (const auto& [tracks, rows, width] : kCases) {
    Random random(static_cast<unsigned>(width));
    OnDevice gate(backend(), tracks, rows, width, inner(), random, 20);
    const float large = inner() == DType::float16 ? 6e4f : 3e38f;
    gate.host.values[0] = width % 2 == 0 ? large : -large;
    gate.put();
    const OnDevice up(backend(), tracks, rows, width, inner(), random);
    Activation expected(gate.host);
    backend().swiglu(gate.tensor, up.tensor);
    ReferenceBackend().swiglu(expected.tensor, up.host.tensor);
    expect_near(gate.get(), expected.values, rounding(1), "swiglu");
  }
}

// What a product beyond the range of the inner type becomes is infinite, not the largest number.
TEST_P(DeviceElementwise, SwigluBeyondTheRange) {
  OnDevice gate(backend(), 1, 1, 3, inner()), up(backend(), 1, 1, 3, inner());
  const float large = inner() == DType::float16 ? 6e4f : 3e38f;
  gate.host.values = {large, large, 1};
  up.host.values = {2, -2, 0};
  gate.put();
  up.put();
  backend().swiglu(gate.tensor, up.tensor);
  EXPECT_EQ(gate.get(), (std::vector<float>{INFINITY, -INFINITY, 0}));
}

TEST_P(DeviceElementwise, GathersRowsAndEmbeds) {
  const WorkLimits limits{
      .rows = 7, .logit_rows = 7, .sequences = 7, .context = 16, .heads = 1, .head_dim = 8};
  backend().reserve(limits);
  Random random(4);
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
    for (const WeightRole role : {WeightRole::embedding, WeightRole::tied_embedding}) {
      // Tables that are the head's matrix too take the inner type.
      if (on_cuda() && role == WeightRole::tied_embedding && dtype != inner()) continue;
      ReferenceBackend reference;
      const BothWeights table(backend(), reference, role, dtype, 1, 1, 50, 37, random);
      const std::vector<std::int32_t> tokens{49, 0, 7, 7, 23}, picked{4, 0, 0, 1};
      const std::vector<std::int32_t> positions{0, 0, 0, 0, 0}, slots{0, 1, 2, 3, 4}, pages(5, 0);
      OnDevice x(backend(), 1, 5, 37, DType::float32), some(backend(), 1, 4, 37, DType::float32);
      backend().set_step_inputs(tokens, {positions, slots, pages, 1});
      backend().embed(table.device[0], tokens, x.tensor);
      backend().gather_rows(x.tensor, picked, some.tensor);
      Activation expected(1, 5, 37), expected_some(1, 4, 37);
      reference.embed(table.host[0], tokens, expected.tensor);
      reference.gather_rows(expected.tensor, picked, expected_some.tensor);
      EXPECT_EQ(x.get(), expected.values);
      EXPECT_EQ(some.get(), expected_some.values);
      const std::vector<std::int32_t> outside{0, 0, 50, 0, 0};
      EXPECT_ANY_THROW(backend().embed(table.device[0], outside, x.tensor));
    }
}

// More rows than one launch takes.
TEST_P(DeviceElementwise, GathersManyRows) {
  constexpr std::int64_t kRows = 1030, kFrom = 7;
  Random random(1);
  const OnDevice x(backend(), 1, kFrom, 3, DType::float32, random);
  OnDevice out(backend(), 1, kRows, 3, DType::float32);
  std::vector<std::int32_t> rows;
  for (std::int64_t r = 0; r < kRows; ++r) rows.push_back(random.below(kFrom));
  backend().gather_rows(x.tensor, rows, out.tensor);
  Activation expected(1, kRows, 3);
  ReferenceBackend().gather_rows(x.host.tensor, rows, expected.tensor);
  EXPECT_EQ(out.get(), expected.values);
}

// The order of the tree is fixed (docs/SPEC.md, Reproducibility): bits, not closeness.
TEST_P(DeviceElementwise, TreeSumAddsInTheFixedOrder) {
  for (const std::int64_t n : {1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 21, 64})
    for (const std::int64_t count : {1, 130, 1300}) {
      Random random(static_cast<unsigned>(n));
      OnDevice parts(backend(), n, 1, count, DType::float32, random, 1000);
      const OnDevice base(backend(), 1, 1, count, DType::float32, random);
      OnDevice sum(backend(), 1, 1, count, DType::float32), onto(backend(), 1, 1, count, DType::float32);
      std::vector<const float*> on_device, on_host;
      for (std::int64_t p = 0; p < n; ++p) {
        on_device.push_back(parts.tensor.row(p, 0));
        on_host.push_back(parts.host.tensor.row(p, 0));
      }
      const float scale = 1.0f / static_cast<float>(n);
      backend().tree_sum(on_device, count, 1.0f, nullptr, sum.tensor.row(0, 0));
      backend().tree_sum(on_device, count, scale, base.tensor.row(0, 0), onto.tensor.row(0, 0));
      Activation expected(1, 1, count), expected_onto(1, 1, count), last(1, 1, count);
      ReferenceBackend reference;
      reference.tree_sum(on_host, count, 1.0f, nullptr, expected.tensor.row(0, 0));
      reference.tree_sum(on_host, count, scale, base.host.tensor.row(0, 0), expected_onto.tensor.row(0, 0));
      EXPECT_EQ(sum.get(), expected.values) << n << " parts";
      EXPECT_EQ(onto.get(), expected_onto.values) << n << " parts";
      backend().tree_sum(on_device, count, 1.0f, nullptr, parts.tensor.row(n - 1, 0));
      const std::vector<float> all = parts.get();
      EXPECT_TRUE(std::equal(expected.values.begin(), expected.values.end(), all.end() - count)) << n;
    }
}

}  // namespace
}  // namespace ptrt::testing
