#include "ops/fixtures/op_fixture.h"

namespace ptrt::testing {
namespace {

class ElementwiseBits : public CpuOpTest {};
PTRT_EVERY_TARGET(ElementwiseBits);

// Wherever an element lies: in the middle of vectors or in the rest at the end, alone or among others.
TEST_P(ElementwiseBits, SwigluIsBatchInvariant) {
  Random random(9);
  constexpr std::int64_t kCount = 40000;
  Activation gate(1, 1, kCount), up(1, 1, kCount, random);
  for (float& g : gate.values) g = random.uniform(-10, 10);
  Activation out(gate), alone(gate);
  make_backend(3)->glu(FfnActivation::silu, out.tensor, up.tensor);
  const auto single = make_backend(1);
  for (std::int64_t i = 0; i < kCount; ++i)
    single->glu(FfnActivation::silu, {&alone.values[static_cast<std::size_t>(i)], 1, 1, 1, 1},
                {&up.values[static_cast<std::size_t>(i)], 1, 1, 1, 1});
  EXPECT_TRUE(same_bits(out.values.data(), alone.values.data(), kCount));
}

}  // namespace
}  // namespace ptrt::testing
