// The command line of bench_cuda, and the shapes and memory that it measures.
#include <gtest/gtest.h>

#include "cuda_options.h"
#include "cuda_weights.h"
#include "kernels/base/error.h"

namespace ptrt::testing {
namespace {

std::string refusal(const std::vector<std::string>& arguments) {
  try {
    shape_of(parse_bench_options(arguments));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::bad_input);
    return error.what();
  }
  return "";
}

const std::string kConfigs = PTRT_PERF_CONFIGS;

TEST(BenchOptions, AShareOfAModel) {
  const std::string file = kConfigs + "/pt8_30b_d8.json";
  const BenchOptions options =
      parse_bench_options({"--rows", "1,16,128", "--config", file, "--json", "out.json"});
  EXPECT_EQ(options.json_file, "out.json");
  EXPECT_EQ(options.rows, (std::vector<std::int64_t>{1, 16, 128}));
  const BenchShape one = shape_of(options);
  EXPECT_EQ(one.name, "pt8_30b_d8");
  EXPECT_EQ(one.tracks, 1);
  EXPECT_EQ(one.q_width(), 768);
  EXPECT_EQ(one.kv_width(), 128);
  EXPECT_EQ(2 * one.layer_elements(), 116391936);  // bytes that one of eight ranks reads a layer
  EXPECT_EQ(one.widest(), 6144);
  const BenchShape two = shape_of(parse_bench_options({"--config", file, "--ranks", "4"}));
  EXPECT_EQ(two.tracks, 2);
  EXPECT_EQ(two.layer_elements(), 2 * one.layer_elements());
}

// What is measured without a configuration is that file.
TEST(BenchOptions, TheDefaultIsDense8b) {
  const BenchShape fixed = shape_of(parse_bench_options({}));
  const BenchShape read = shape_of(parse_bench_options({"--config", kConfigs + "/dense_8b.json"}));
  EXPECT_EQ(fixed.name, read.name);
  EXPECT_EQ(fixed.layers, read.layers);
  EXPECT_EQ(fixed.layer_elements(), read.layer_elements());
  EXPECT_EQ(fixed.heads, read.heads);
  EXPECT_EQ(fixed.kv_heads, read.kv_heads);
  EXPECT_EQ(fixed.vocab, read.vocab);
}

TEST(BenchOptions, BadCalls) {
  const std::string file = kConfigs + "/pt8_30b_d8.json";
  for (const auto& [arguments, words] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"--fast", "1"}, "unknown option --fast"},
           {{"--json"}, "--json takes a value"},
           {{"--rows", "1"}, "go with --config"},
           {{"--config", file, "--rows", "1,,2"}, "--rows takes numbers"},
           {{"--config", file, "--rows", "0"}, "--rows takes numbers"},
           {{"--config", file, "--rows", "129"}, "from 1 to 128"},
           {{"--config", file, "--ranks", "3"}, "do not divide the 8 tracks"},
           {{"--config", kConfigs + "/none.json"}, "none.json"}})
    EXPECT_NE(refusal(arguments).find(words), std::string::npos) << words << ": " << refusal(arguments);
}

TEST(BenchWeights, PiecesLieOneAfterTheOther) {
  std::vector<std::byte> memory(1 << 16);
  Pieces pieces(memory.data(), memory.size());
  const TrackWeights plain = pieces.matrices(DType::bfloat16, 2, 8, 24);
  const TrackWeights int8 = pieces.matrices(DType::int8, 1, 8, 24),
                     next = pieces.matrices(DType::int8, 1, 8, 24);
  const auto at = [&](const void* data) { return static_cast<const std::byte*>(data) - memory.data(); };
  EXPECT_EQ(at(plain[0].data), 0);
  EXPECT_EQ(at(plain[1].data), 512);  // 384 bytes, rounded up
  EXPECT_EQ(at(int8[0].data), 1024);
  EXPECT_EQ(at(int8[0].scales), 1280);  // after eight rows of 32 bytes
  EXPECT_EQ(at(next[0].data), 1536);
  EXPECT_EQ(plain[0].scales, nullptr);
}

}  // namespace
}  // namespace ptrt::testing
