#include <algorithm>

#include "kernels/error.h"
#include "op_test.h"

namespace ptrt::testing {
namespace {

TEST(CpuBackend, NamesWhatItRunsOn) {
  const auto backend = make_cpu_backend({.threads = 2});
  EXPECT_EQ(backend->name(), "cpu");
  EXPECT_EQ(backend->threads(), 2);
  EXPECT_EQ(backend->instruction_set(), simd_targets().front());
  for (const std::string& target : simd_targets()) {
    set_simd_target(target);
    EXPECT_EQ(backend->instruction_set(), target);
  }
  EXPECT_THROW(set_simd_target("AVX9"), Error);
  set_simd_target("");
  EXPECT_EQ(backend->instruction_set(), simd_targets().front());
  EXPECT_THROW(make_cpu_backend({.threads = 0}), Error);
}

TEST(CpuBackend, AllocatesZeroedAlignedMemory) {
  const auto backend = make_cpu_backend({.threads = 1});
  for (const std::int64_t elements : {0, 1, 1000, 3000000}) {
    const auto memory = backend->allocate(static_cast<std::size_t>(elements) * 4, "a test");
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory.get()) % 64, 0u);
    EXPECT_TRUE(std::all_of(memory.get(), memory.get() + elements * 4, [](std::byte b) { return b == std::byte(0); }));
    std::fill_n(memory.get(), elements * 4, std::byte(1));
  }
}

TEST(CpuBackend, SaysWhatItCannotAllocate) {
  const auto backend = make_cpu_backend({.threads = 1});
  for (const std::int64_t elements : {std::int64_t{1} << 45, std::int64_t{1} << 61}) {
    std::string message;
    try {
      backend->allocate(static_cast<std::size_t>(elements) * 4, "the KV pool");
    } catch (const Error& error) {
      message = error.what();
      EXPECT_EQ(error.code(), ExitCode::failure);
    }
    EXPECT_NE(message.find("the KV pool"), std::string::npos) << message;
  }
}

TEST(CpuBackend, KeepsMatricesAndWidensVectors) {
  const auto backend = make_cpu_backend({.threads = 1});
  const std::vector<std::uint16_t> stored{0x3F80, 0xC000, 0x0000,
                                          0x3FC0, 0x4049, 0x7F80};  // 1 -2 0 1.5 3.14… inf
  FromFunction read([&](std::span<std::byte> to) {
    ASSERT_EQ(to.size(), stored.size() * 2);
    std::memcpy(to.data(), stored.data(), to.size());
  });
  const Weight matrix = backend->load_weight({"w", WeightRole::matrix, DType::bfloat16, 1, 2, 3}, read);
  EXPECT_EQ(matrix.dtype, DType::bfloat16);
  EXPECT_EQ(std::memcmp(matrix.data, stored.data(), 12), 0);
  EXPECT_EQ(backend->weight_bytes(), 12u);
  const Weight vector = backend->load_weight({"n", WeightRole::vector, DType::bfloat16, 1, 1, 6}, read);
  EXPECT_EQ(vector.dtype, DType::float32);
  const auto* values = static_cast<const float*>(vector.data);
  EXPECT_EQ(std::vector<float>(values, values + 5), (std::vector<float>{1, -2, 0, 1.5f, 3.140625f}));
  EXPECT_TRUE(std::isinf(values[5]));
  EXPECT_EQ(backend->weight_bytes(), 36u);
  for (const Weight& w : {matrix, vector}) EXPECT_EQ(reinterpret_cast<std::uintptr_t>(w.data) % 64, 0u);
}

TEST(CpuBackend, HoldsManyWeightsOfAllSizes) {
  const auto backend = make_cpu_backend({.threads = 1});
  std::vector<Weight> weights;
  std::size_t bytes = 0;
  for (std::int64_t i = 0; i < 60; ++i) {
    const std::int64_t rows = i % 10 == 0 ? 20000 : i + 1;
    FromFunction fill([&](std::span<std::byte> to) { std::fill(to.begin(), to.end(), std::byte(i)); });
    weights.push_back(backend->load_weight({"w", WeightRole::matrix, DType::float32, 1, rows, 251}, fill));
    bytes += static_cast<std::size_t>(rows * 251) * 4;
  }
  EXPECT_EQ(backend->weight_bytes(), bytes);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const auto* data = static_cast<const std::byte*>(weights[i].data);
    EXPECT_TRUE(std::all_of(data, data + weights[i].out * weights[i].in * 4, [&](std::byte b) { return b == std::byte(i); }))
        << i;
  }
}

TEST(CpuBackend, APassedOnReadErrorLeavesTheBackendUsable) {
  const auto backend = make_cpu_backend({.threads = 1});
  FromFunction torn([](std::span<std::byte>) { throw_bad_input("torn file"); });
  EXPECT_THROW(backend->load_weight({"w", WeightRole::matrix, DType::float32, 1, 4, 4}, torn), Error);
  EXPECT_EQ(backend->weight_bytes(), 0u);
}

}  // namespace
}  // namespace ptrt::testing
