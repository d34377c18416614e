#include "ops/fixtures/op_fixture.h"

namespace ptrt::testing {
namespace {

class NormBits : public CpuOpTest {};
PTRT_EVERY_TARGET(NormBits);

TEST_P(NormBits, BatchInvariant) {
  constexpr std::int64_t kWidth = 203, kRows = 200;
  Random random(4);
  const RandomWeights w(DType::float32, 1, 1, 1, kWidth, random);
  const Activation x(1, kRows, kWidth, random);
  Activation alone(1, kRows, kWidth);
  const auto single = make_backend(1);
  for (std::int64_t r = 0; r < kRows; ++r)
    single->rms_norm(w.tracks(), 1e-6f, rows_of(x.tensor, r, 1), rows_of(alone.tensor, r, 1));
  for (const int threads : {1, 2, 3}) {
    Activation out(1, kRows, kWidth);
    make_backend(threads)->rms_norm(w.tracks(), 1e-6f, x.tensor, out.tensor);
    EXPECT_TRUE(same_bits(out.values.data(), alone.values.data(), kRows * kWidth)) << threads << " threads";
  }
}

}  // namespace
}  // namespace ptrt::testing
