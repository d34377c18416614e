// Matrices of 8 bits that are widened part by part: the bits of those widened at once.
#include "kernels/cuda/matmul/widened_gemm.h"

#include <gtest/gtest.h>

#include "kernels/cuda/host/weight_loader.h"
#include "ops/fixtures/test_tensors.h"

namespace ptrt::cuda {
namespace {

TEST(WidenedGemm, PartsGiveTheBitsOfTheWhole) {
  constexpr std::int64_t kTracks = 5, kRows = 6, kOut = 72, kIn = 40;
  constexpr std::int64_t kMatrixBytes = kOut * kIn * 2;
  testing::Random random(3);
  const Stream stream;
  WeightLoader loader(stream, DType::bfloat16);
  std::vector<std::uint16_t> x(static_cast<std::size_t>(kTracks * kRows * kIn));
  for (std::uint16_t& value : x) value = to_bfloat16(random.uniform());
  for (const DType dtype : {DType::int8, DType::float8_e4m3}) {
    const testing::RandomWeights random_weights(dtype, kTracks, 1, kOut, kIn, random);
    const TrackWeights weights = random_weights.load(
        [&](const WeightSpec& spec, WeightSource& source) { return loader.load(spec, source); });
    // Of all tracks at once; two tracks at a time; a track, two thirds of one, and eight outputs of one.
    std::vector<float> expected;
    for (const std::int64_t bytes :
         {kWidenedBytes, 2 * kMatrixBytes, kMatrixBytes, kMatrixBytes * 2 / 3, std::int64_t{8} * kIn * 2}) {
      std::vector<float> y(static_cast<std::size_t>(kTracks * kRows * kOut), -1.0f);
      WidenedGemm gemm(bytes);
      gemm.reserve();
      CublasLt lt;
      gemm.run({&weights,
                {x.data(), kTracks, kRows, kIn, kRows * kIn, DType::bfloat16},
                {y.data(), kTracks, kRows, kOut, kRows * kOut}},
               lt, stream.get());
      stream.wait();
      if (expected.empty()) expected = y;
      EXPECT_EQ(y, expected) << to_string(dtype) << ", " << bytes << " bytes";
    }
    EXPECT_EQ(std::ranges::count(expected, -1.0f), 0);
  }
}

}  // namespace
}  // namespace ptrt::cuda
