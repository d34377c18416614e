#include <algorithm>
#include <array>
#include <atomic>

#include "kernels/base/error.h"
#include "kernels/cpu/simd/dispatch.h"
#include "kernels/cpu/weights/packed.h"
#include "ops/fixtures/test_tensors.h"

namespace ptrt::testing {
namespace {

// The name of the vectors without the part for bfloat16 products.
std::string vectors(const std::string& target) {
  return target.substr(0, target.find('+'));
}

TEST(CpuBackend, NamesWhatItRunsOn) {
  const auto backend = make_cpu_backend({.threads = 2});
  EXPECT_EQ(backend->traits().name, "cpu");
  EXPECT_EQ(backend->traits().threads, 2);
  EXPECT_EQ(backend->instruction_set(), vectors(simd_targets().front()));
  for (const std::string& target : simd_targets()) {
    set_simd_target(target);
    EXPECT_EQ(backend->instruction_set(), vectors(target));
  }
  for (const char* name : {"AVX9", "AVX9+BF16", "AVX2+BF16", "+BF16"})
    EXPECT_THROW(set_simd_target(name), Error) << name;
  set_simd_target("");
  EXPECT_EQ(backend->instruction_set(), vectors(simd_targets().front()));
  EXPECT_THROW(make_cpu_backend({.threads = 0}), Error);
}

TEST(CpuBackend, NamesTheInstructionsThatBitsDependOn) {
  EXPECT_TRUE(cpu_computes(Compute::float32));
  const auto backend = make_cpu_backend({.compute = Compute::bfloat16});
  const auto with_int8 = make_cpu_backend({.compute = Compute::int8});
  for (const std::string& target : simd_targets()) {
    set_simd_target(target);
    EXPECT_EQ(backend->instruction_set(), target);
    EXPECT_EQ(with_int8->instruction_set(), target) << "attention and a tied head may take bfloat16";
    EXPECT_EQ(cpu_computes(Compute::bfloat16), target.ends_with("+BF16"));
    if (!target.starts_with("NEON")) {
      EXPECT_EQ(cpu_computes(Compute::int8), target.starts_with("AVX")) << target;
    }
  }
  set_simd_target("");
  EXPECT_EQ(backend->instruction_set(), simd_targets().front());
}

// The program asks the processor itself (kernels/cpu/simd/dispatch.h); the library knows it too.
TEST(CpuBackend, FindsTheInstructionsThatHighwayFinds) {
  constexpr std::int64_t kOurs = HWY_AVX3 | HWY_AVX2 | HWY_SSE4 | HWY_NEON | HWY_EMU128;
  EXPECT_EQ(detect_simd_targets() & kOurs, hwy::SupportedTargets() & kOurs);
}

// AVX-512 with and without its bfloat16 products: each rounds alike whatever the hardware could do.
TEST(CpuBackend, ComputesWithTheNamedInstructions) {
  const std::vector<std::string> targets = simd_targets();
  if (!targets.front().ends_with("+BF16")) GTEST_SKIP() << "no bfloat16 products on this machine";
  constexpr std::int64_t kIn = 300, kOut = 40;
  Random random(17);
  const RandomWeights w(DType::bfloat16, 1, 1, kOut, kIn, random);
  const Activation x(1, 1, kIn, random);
  const auto product = [&](const std::string& target, Compute compute) {
    set_simd_target(target);
    const auto backend = make_cpu_backend({.compute = compute});
    Activation y(1, 1, kOut);
    const TrackWeights loaded = w.load(*backend);
    const LinearJob job{&loaded, x.tensor, y.tensor};
    backend->linear({&job, 1});
    set_simd_target("");
    return y.values;
  };
  const std::string &with = targets[0], &without = targets[1];
  ASSERT_EQ(with, without + "+BF16");
  EXPECT_NE(product(with, Compute::bfloat16), product(without, Compute::bfloat16)) << "pairs add in one step";
  EXPECT_EQ(product(with, Compute::float32), product(without, Compute::float32));
}

TEST(CpuBackend, RunsTracksApartWithTheSameBits) {
  constexpr std::int64_t kTracks = 6, kRows = 5, kIn = 200, kOut = 90;
  Random random(23);
  const RandomWeights w(DType::bfloat16, kTracks, 1, kOut, kIn, random);
  const Activation x(kTracks, kRows, kIn, random);
  for (const Compute compute : {Compute::float32, Compute::bfloat16}) {
    const auto backend = make_cpu_backend({.threads = 3, .compute = compute});
    EXPECT_TRUE(backend->traits().prefers_track_parallel(kTracks));
    EXPECT_FALSE(backend->traits().prefers_track_parallel(kTracks - 1))
        << "the threads would wait for each other";
    EXPECT_FALSE(make_cpu_backend({.threads = 1})->traits().prefers_track_parallel(kTracks));
    const TrackWeights loaded = w.load(*backend);
    Activation together(kTracks, kRows, kOut), apart(kTracks, kRows, kOut);
    const LinearJob job{&loaded, x.tensor, together.tensor};
    backend->linear({&job, 1});
    std::array<std::atomic<int>, kTracks> runs{};
    backend->parallel_over_tracks(kTracks, [&](std::int64_t t, Backend& lane) {
      runs[static_cast<std::size_t>(t)]++;
      const TrackWeights own = {loaded[static_cast<std::size_t>(t)]};
      const LinearJob part{&own, x.tensor.track(t), apart.tensor.track(t)};
      lane.linear({&part, 1});
    });
    EXPECT_EQ(apart.values, together.values);
    for (const auto& count : runs) EXPECT_EQ(count.load(), 1);
    EXPECT_THROW(backend->parallel_over_tracks(kTracks, [](std::int64_t, Backend&) { throw_failure("no"); }),
                 Error);
  }
}

TEST(CpuBackend, AllocatesZeroedAlignedMemory) {
  const auto backend = make_cpu_backend({.threads = 1});
  for (const std::int64_t elements : {0, 1, 1000, 3000000}) {
    const auto memory = backend->allocate(static_cast<std::size_t>(elements) * 4, "a test");
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory.get()) % 64, 0u);
    EXPECT_TRUE(std::all_of(memory.get(), memory.get() + elements * 4,
                            [](std::byte b) { return b == std::byte(0); }));
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

TEST(CpuBackend, KeepsTablesAndWidensVectors) {
  const auto backend = make_cpu_backend({.threads = 1});
  const std::vector<std::uint16_t> stored{0x3F80, 0xC000, 0x0000,
                                          0x3FC0, 0x4049, 0x7F80};  // 1 -2 0 1.5 3.14… inf
  FromFunction read([&](std::span<std::byte> to) {
    ASSERT_EQ(to.size(), stored.size() * 2);
    std::memcpy(to.data(), stored.data(), to.size());
  });
  const Weight table = backend->load_weight({"e", WeightRole::embedding, DType::bfloat16, 1, 2, 3}, read);
  EXPECT_EQ(table.dtype, DType::bfloat16);
  EXPECT_FALSE(table.packed);
  EXPECT_EQ(std::memcmp(table.data, stored.data(), 12), 0);
  EXPECT_EQ(backend->weight_bytes(), 12u);
  const Weight vector = backend->load_weight({"n", WeightRole::vector, DType::bfloat16, 1, 1, 6}, read);
  EXPECT_EQ(vector.dtype, DType::float32);
  const auto* values = static_cast<const float*>(vector.data);
  EXPECT_EQ(std::vector<float>(values, values + 5), (std::vector<float>{1, -2, 0, 1.5f, 3.140625f}));
  EXPECT_TRUE(std::isinf(values[5]));
  EXPECT_EQ(backend->weight_bytes(), 36u);
  for (const Weight& w : {table, vector}) EXPECT_EQ(reinterpret_cast<std::uintptr_t>(w.data) % 64, 0u);
}

// Weights of all sizes, larger than a piece of reading and than a block of memory too, come back row by row.
TEST(CpuBackend, HoldsManyWeightsOfAllSizes) {
  const auto backend = make_cpu_backend({.threads = 2});
  struct Loaded {
    Weight weight;
    RandomWeights content;
  };
  std::vector<Loaded> all;
  Random random(8);
  std::size_t bytes = 0;
  for (std::int64_t i = 0; i < 30; ++i) {
    const std::int64_t rows = i % 10 == 0 ? 5000 : i + 1;
    const DType dtype = std::array{DType::float32, DType::bfloat16, DType::float16}[i % 3];
    RandomWeights content(dtype, 1, 1, rows, 251, random);
    const Weight weight = content.load(*backend, WeightRole::tied_embedding)[0];
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(weight.data) % 64, 0u);
    bytes += static_cast<std::size_t>(packed_layout(weight).matrix_bytes());
    all.push_back({weight, std::move(content)});
  }
  EXPECT_EQ(backend->weight_bytes(), bytes);
  for (const Loaded& loaded : all)
    for (std::int64_t row = 0; row < loaded.weight.out; row += 1 + loaded.weight.out / 50) {
      Activation x(1, 1, 251);
      backend->embed(loaded.weight, std::vector{static_cast<std::int32_t>(row)}, 1, x.tensor);
      for (std::int64_t i = 0; i < 251; ++i)
        ASSERT_EQ(double{x.at(0, 0, i)}, loaded.content.value(0, row, i));
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
