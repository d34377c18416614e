#include "kernels/cpu/ops/moe.h"
#include "ops/fixtures/moe_fixture.h"

namespace ptrt::testing {
namespace {

class MoeBits : public CpuOpTest {};
PTRT_EVERY_TARGET(MoeBits);

DType router_dtype(DType dtype) {
  return dtype == DType::int8 ? DType::bfloat16 : dtype;
}

const std::vector<std::pair<Compute, DType>> kComputes{
    {Compute::float32, DType::bfloat16}, {Compute::bfloat16, DType::bfloat16}, {Compute::int8, DType::int8}};

TEST_P(MoeBits, AgreesWithTheReference) {
  for (const auto& [compute, dtype] : kComputes) {
    const auto fast = make_backend({.threads = 2, .compute = compute});
    ReferenceBackend reference({.compute = compute});
    Random random(3);
    const MoeLayer layer({5, 2, 40, 3}, dtype, 2, 70, router_dtype(dtype), random);
    const Activation x(2, 30, 70, random);
    const Activation y = layer.run(*fast, x.tensor), expected = layer.run(reference, x.tensor);
    // The down product rounds the gate product's result, which may lie on either side of a rounding edge.
    for (std::size_t i = 0; i < y.values.size(); ++i)
      expect_close(double{y.values[i]}, double{expected.values[i]}, compute == Compute::float32 ? 1e-4 : 1e-2,
                   std::string(to_string(compute)));
  }
}

TEST_P(MoeBits, BatchInvariant) {
  Random random(1);
  // At the second width products of few rows take several panels side by side.
  for (const auto& [width, rows] : {std::pair<std::int64_t, std::int64_t>{48, 60}, {520, 9}})
    for (const auto& [compute, dtype] : kComputes) {
      const MoeLayer layer({6, 2, 40, 5}, dtype, 2, width, router_dtype(dtype), random);
      const Activation x(2, rows, width, random);
      for (const int threads : {1, 2, 3}) {
        const auto backend = make_backend({.threads = threads, .compute = compute});
        const Activation batch = layer.run(*backend, x.tensor);
        for (std::int64_t r = 0; r < rows; ++r) {
          const Activation alone = layer.run(*backend, rows_of(x.tensor, r, 1));
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
  route_row(logits, 0, true, chosen);
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
