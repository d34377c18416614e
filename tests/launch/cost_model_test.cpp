// The plan's arithmetic against sums done by hand.
#include "launch/plan/cost_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "kernels/base/error.h"
#include "launch/plan/hardware.h"
#include "temp_folder.h"

namespace ptrt {
namespace {

ModelConfig four_tracks() {
  ModelConfig config;
  config.tracks = 4;
  config.layers = 8;
  config.sync_layers = {4, 8};
  config.hidden_size = 100;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 50;
  config.ffn_size = 300;
  config.vocab_size = 1000;
  config.max_context = 4096;
  config.norm_placement.pre = false;
  config.attention_pattern = {AttentionKind::global_rope};
  config.ffn_pattern = {FfnKind::dense};
  config.tie_embeddings = true;
  return config;
}

// A layer of a track: wq and wo 100 x 100, wk and wv 50 x 100, three matrices of 300 x 100.
constexpr double kLayer = 2 * 10000 + 2 * 5000 + 3 * 30000;

const GpuSpec kGpu{"g", 1, 1000, 100, 0.5, 0.5, 2};
const LinkSpec kLink{"l", 10, 1, 0};

TEST(CostModel, CollectivesTakeTheQuickerWay) {
  EXPECT_EQ(sum_us(kLink, 1, 1e6), 0);
  EXPECT_DOUBLE_EQ(sum_us(kLink, 4, 1000), 10 + 3 * 1.0);
  EXPECT_DOUBLE_EQ(sum_us(kLink, 4, 100000), 20 + 2 * 0.75 * 100.0);
}

TEST(CostModel, MessagesCostTimeOfTheirOwn) {
  LinkSpec link = kLink;
  link.message_us = 2;
  EXPECT_DOUBLE_EQ(sum_us(link, 4, 1000), 10 + 3 * (2 + 1.0));
  EXPECT_DOUBLE_EQ(sum_us(link, 4, 100000), 20 + 6 * (2 + 25.0));
}

TEST(CostModel, SumsAsShortAsTheLinkHasThemAndTheEnginesOwnTime) {
  const ModelConfig config = four_tracks();
  const Workload work{64, 2, 1, 8192};
  LinkSpec link = kLink;
  link.sum_bytes = 2;
  const Prediction wide = predict(config, {4, 1, 1}, work, kGpu, kLink);
  const Prediction narrow = predict(config, {4, 1, 1}, work, kGpu, link);
  EXPECT_NEAR(1e3 * (wide.tpot_ms - narrow.tpot_ms), 2 * 3 * 200 / 1000.0, 1e-6) << "two sums of 100 values";
  GpuSpec gpu = kGpu;
  gpu.step_overhead_us = 7;
  EXPECT_NEAR(1e3 * (predict(config, {4, 1, 1}, work, gpu, kLink).tpot_ms - wide.tpot_ms), 7, 1e-6);
}

TEST(CostModel, TwoStepsFromTheSizeThatTheLinkNames) {
  LinkSpec link = kLink;
  link.two_step_bytes = 1000;
  EXPECT_DOUBLE_EQ(sum_us(link, 4, 999), 10 + 3 * 0.999);
  EXPECT_DOUBLE_EQ(sum_us(link, 4, 1000), 20 + 6 * 0.25);
}

TEST(CostModel, HostsOfSeveralRanksSumInTwoLevels) {
  LinkSpec link = kLink;
  link.host_ranks = 4;
  link.host_latency_us = 2;
  link.host_gb_per_s = 10;
  EXPECT_DOUBLE_EQ(sum_us(link, 3, 1000), 2 + 2 * 0.1) << "on one host";
  EXPECT_DOUBLE_EQ(sum_us(link, 16, 1000), 2 * 2 + 4 * 0.1 + sum_us(kLink, 4, 1000));
  EXPECT_DOUBLE_EQ(sum_us(link, 6, 1000), sum_us(kLink, 6, 1000)) << "hosts with different numbers of ranks";
}

TEST(CostModel, ASharedLinkCarriesOneMessageAtATime) {
  LinkSpec link = kLink;
  link.shared = true;
  EXPECT_DOUBLE_EQ(sum_us(link, 4, 1000), 10 + 4 * 3 * 1.0);
  link.two_step_bytes = 1;
  EXPECT_DOUBLE_EQ(sum_us(link, 4, 1000), 20 + 2 * 4 * 3 * 0.25);
}

TEST(CostModel, EverySyncPointWaitsForTheSlowest) {
  const ModelConfig config = four_tracks();
  GpuSpec gpu = kGpu;
  gpu.wait_layers = 0.5;
  const Workload work{64, 2, 1, 8192};
  const double even = predict(config, {4, 1, 1}, work, kGpu, kLink).tpot_ms;
  const Prediction late = predict(config, {4, 1, 1}, work, gpu, kLink);
  const double compute = even - even * predict(config, {4, 1, 1}, work, kGpu, kLink).sync_fraction;
  EXPECT_NEAR(late.tpot_ms - even, 0.5 * 2 * std::sqrt(4) * compute / 8, 1e-9)
      << "two fusions, four layers before each";
  EXPECT_EQ(predict(config, {1, 1, 1}, work, gpu, kLink).tpot_ms,
            predict(config, {1, 1, 1}, work, kGpu, kLink).tpot_ms)
      << "a single rank never waits";
}

TEST(CostModel, WaitsGrowWithTheLayersBetweenSyncPoints) {
  ModelConfig config = four_tracks();
  const Workload work{64, 2, 1, 8192};
  const auto waits = [&](const Layout& layout) { return predict(config, layout, work, kGpu, kLink).waits; };
  EXPECT_EQ(waits({1, 1, 1}), 0);
  EXPECT_DOUBLE_EQ(waits({4, 1, 1}), 2 * std::sqrt(4));
  EXPECT_DOUBLE_EQ(waits({1, 2, 1}), 16 * std::sqrt(0.5)) << "tracks of one rank do not wait for each other";
  EXPECT_DOUBLE_EQ(waits({2, 2, 1}), 2 * std::sqrt(4) + 16 * std::sqrt(0.5));
  config.sync_layers = {1, 3, 8};
  EXPECT_DOUBLE_EQ(waits({4, 1, 1}), 1 + std::sqrt(2) + std::sqrt(5));
  GpuSpec gpu = kGpu;
  gpu.wait_layers = 0.5;
  const Prediction even = predict(config, {4, 1, 1}, work, kGpu, kLink);
  EXPECT_NEAR(predict(config, {4, 1, 1}, work, gpu, kLink).tpot_ms - even.tpot_ms,
              0.5 * (1 + std::sqrt(2) + std::sqrt(5)) / 8 * even.tpot_ms * (1 - even.sync_fraction), 1e-9);
}

// Three prompts of 64 tokens: with steps of 40 rows, four full steps and one of 32; longer steps hold several
// prompts.
TEST(CostModel, PromptsOfABatchFillSteps) {
  const ModelConfig config = four_tracks();
  const Layout layout{4, 1, 1};
  const auto batch_us = [&](const Workload& work) {
    const Prediction p = predict(config, layout, work, kGpu, kLink);
    return 1e6 * static_cast<double>(work.batch * work.output_len) / p.output_tokens_per_s;
  };
  const auto step_us = [](double rows, double sequences, double context) {
    const double weights = 2 * (8 * kLayer + 100000 / 4.0),
                 ops = 2 * rows * 8 * kLayer + 2 * sequences * 25000;
    const double kv = sequences * context * 8 * 2 * 50 * 2, attention = rows * context * 8 * 4 * 100;
    const auto greater = [](double bytes, double work) {
      return std::max(bytes / (1e3 * 1000 * 0.5), work / (1e6 * 100 * 0.5));
    };
    return greater(weights, ops) + greater(kv, attention) + 8 * 2 + 2 * sum_us(kLink, 4, rows * 400) + 10 +
           3 * sequences * 8 / 1000;
  };
  EXPECT_NEAR(batch_us({64, 1, 3, 40}), 4 * step_us(40, 1, 32) + step_us(32, 1, 32), 1e-6);
  EXPECT_NEAR(batch_us({64, 1, 3, 160}), step_us(160, 2.5, 32) + step_us(32, 1, 32), 1e-6);
  EXPECT_NEAR(batch_us({64, 1, 3, 192}), step_us(192, 3, 32), 1e-6);
  EXPECT_NEAR(batch_us({64, 1, 3, 1000}), step_us(192, 3, 32), 1e-6);
  EXPECT_NEAR(batch_us({64, 1, 1, 40}), step_us(40, 1, 20) + step_us(24, 1, 52), 1e-6)
      << "a lone prompt as for its first token";
}

TEST(CostModel, CountsAndPricesMakeTheTime) {
  const ModelConfig config = four_tracks();
  GpuSpec gpu{"g", 1, 1000, 100, 0.5, 0.5, 2};
  gpu.decode_gemm_efficiency = 0.25;
  gpu.kv_bandwidth_efficiency = 0.125;
  const Prediction p = predict(config, {4, 1, 1}, {64, 2, 3, 8192}, gpu, kLink);
  EXPECT_EQ(p.decode.hops, 3) << "two fusions and the head's exchange";
  EXPECT_EQ(p.decode.messages, 9);
  EXPECT_DOUBLE_EQ(p.decode.moved_bytes, 2 * 3 * 3 * 400 + 3 * 3 * 8);
  const auto us = [](const StepCounts& c, double efficiency) {
    return std::max(c.weight_bytes / (1e3 * 1000 * 0.5), c.ops / (1e6 * 100 * efficiency)) +
           std::max(c.kv_bytes / (1e3 * 1000 * 0.125), c.attention_ops / (1e6 * 100 * efficiency)) + 8 * 2 +
           c.hops * 10 + c.moved_bytes / 1e3;
  };
  EXPECT_NEAR(1e3 * p.tpot_ms, us(p.decode, 0.25), 1e-6);
  EXPECT_NEAR(1e3 * p.ttft_ms, us(p.prefill, 0.5), 1e-6);
}

TEST(CostModel, CountsBytesAndSyncPoints) {
  const ModelConfig config = four_tracks();
  const Workload work{64, 2, 1, 8192};
  const Prediction alone = predict(config, {1, 1, 1}, work, kGpu, kLink);
  EXPECT_DOUBLE_EQ(alone.weight_bytes, 2 * (4 * 8 * kLayer + 100000));
  EXPECT_DOUBLE_EQ(alone.kv_bytes, 66 * 4 * 8 * 2 * 50 * 2);
  EXPECT_EQ(alone.sync_points, 2) << "tracks that share a rank meet too";
  EXPECT_EQ(alone.sync_fraction, 0);
  const Prediction apart = predict(config, {4, 1, 1}, work, kGpu, kLink);
  EXPECT_DOUBLE_EQ(apart.weight_bytes, 2 * (8 * kLayer + 100000));
  EXPECT_EQ(apart.sync_points, 2);
  EXPECT_EQ(predict(config, {4, 2, 1}, work, kGpu, kLink).sync_points, 2 + 16);
}

TEST(CostModel, ADecodeStepIsReadingGapsAndSyncs) {
  const ModelConfig config = four_tracks();
  const Prediction p = predict(config, {4, 1, 1}, {64, 2, 1, 8192}, kGpu, kLink);
  const double bytes = 2 * (8 * kLayer + 100000 / 4.0) + 65 * 8 * 2 * 50 * 2;
  const double us = bytes / (1e3 * 1000 * 0.5) + 8 * 2 + 2 * (10 + 3 * 400 / 1000.0) + (10 + 3 * 8 / 1000.0);
  EXPECT_NEAR(1e3 * p.tpot_ms, us, 1e-9 * us);
}

TEST(CostModel, TheDenseTwinIsAsLargeAndSyncsTwiceALayer) {
  const ModelConfig config = four_tracks(), dense = dense_twin(config);
  const Workload work{64, 16, 4, 8192};
  const Prediction tracks = predict(config, {4, 1, 1}, work, kGpu, kLink);
  const Prediction shared = predict(dense, {1, 4, 1}, work, kGpu, kLink);
  EXPECT_DOUBLE_EQ(tracks.weight_bytes, shared.weight_bytes);
  EXPECT_DOUBLE_EQ(tracks.kv_bytes, shared.kv_bytes);
  EXPECT_EQ(shared.sync_points, 16);
  EXPECT_GT(shared.tpot_ms, tracks.tpot_ms);
}

TEST(CostModel, ReplicasMultiplyThroughputAlone) {
  const ModelConfig config = four_tracks();
  const Workload work{64, 16, 4, 8192};
  const Prediction one = predict(config, {4, 1, 1}, work, kGpu, kLink);
  const Prediction three = predict(config, {4, 1, 3}, work, kGpu, kLink);
  EXPECT_DOUBLE_EQ(three.output_tokens_per_s, 3 * one.output_tokens_per_s);
  EXPECT_EQ(three.tpot_ms, one.tpot_ms);
  EXPECT_TRUE(one.fits);
  EXPECT_FALSE(predict(config, {4, 1, 1}, {64, 16, 1000000, 8192}, kGpu, kLink).fits);
}

TEST(CostModel, EveryLayoutTakesTheWholeWorld) {
  for (const std::int64_t world : {1, 3, 4, 8, 4096})
    for (const Layout& layout : layouts_of(four_tracks(), world)) EXPECT_EQ(layout.world(), world);
  EXPECT_EQ(layouts_of(four_tracks(), 8).size(), 6u) << "1, 2 or 4 ranks for the tracks by 1 or 2 a track";
}

TEST(Hardware, FilesAreChecked) {
  EXPECT_EQ(gpu_of("h100").memory_gib, 80);
  const TempFolder folder;
  const std::string path = folder / "gpu.json";
  const auto write = [&](const std::string& text) { std::ofstream(path) << text; };
  write(R"({"memory_gib": 1, "memory_gb_per_s": 2, "gemm_tflops": 3, "bandwidth_efficiency": 0.5,
            "gemm_efficiency": 0.6, "layer_overhead_us": 0})");
  EXPECT_EQ(gpu_of(path).gemm_tflops, 3);
  for (const char* text : {"", "[]", "{}", R"({"memory_gib": -1})", R"({"memory": 1})"}) {
    write(text);
    EXPECT_THROW(gpu_of(path), Error) << text;
  }
  const auto expect_message = [&](const std::string& text, const std::string& words) {
    write(text);
    try {
      link_of(path);
      ADD_FAILURE() << text << " was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::bad_input);
      EXPECT_EQ(error.what(), path + ": " + words);
    }
  };
  expect_message(R"({"latency_us": 5, "gb_per_s": 1, "ranks": 0, "name": 7})",
                 "name: expected text, found 7");
  expect_message(R"({"latency_us": -5, "gb_per_s": 1, "ranks": 0})",
                 "latency_us: expected a number from 1e-9 to 1e15, or 0, found -5");
  expect_message(R"({"latency_us": 5, "gb_per_s": 0, "ranks": 0})",
                 "gb_per_s: expected a number from 1e-9 to 1e15, found 0");
  expect_message(R"({"latency_us": 5, "gb_per_s": 1, "ranks": 2.5})",
                 "ranks: expected an integer in 0..1073741824, found 2.5");
  expect_message(R"({"latency_us": 5, "gb_per_s": 1, "ranks": 1e300})",
                 "ranks: expected a number from 1e-9 to 1e15, or 0, found 1e+300");
  expect_message(R"({"latency_us": 1e308, "gb_per_s": 1, "ranks": 0})",
                 "latency_us: expected a number from 1e-9 to 1e15, or 0, found 1e+308");
  // Figures of 0 or infinity, a value nested too deep to be printed, a key twice.
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  for (const std::string& text :
       {std::string(R"({"latency_us": 5, "gb_per_s": 1e-320, "ranks": 0})"),
        R"({"latency_us": 5, "gb_per_s": 1, "ranks": 0, "name": )" + deep + "}",
        std::string(R"({"latency_us": 5, "gb_per_s": 1, "gb_per_s": 2, "ranks": 0})")}) {
    write(text);
    EXPECT_THROW(link_of(path), Error) << text.substr(0, 80);
  }
  EXPECT_THROW(link_of("no-such-link"), Error);
  write(R"({"latency_us": 5, "gb_per_s": 1, "ranks": 0})");
  EXPECT_EQ(link_of(path).sum_bytes, 4);
  EXPECT_EQ(link_of(path).message_us, 0);
  write(R"({"latency_us": 5, "gb_per_s": 1, "ranks": 0, "message_us": 3, "sum_bytes": 2})");
  EXPECT_EQ(link_of(path).sum_bytes, 2);
  EXPECT_EQ(link_of(path).message_us, 3);
  write(
      R"({"latency_us": 5, "gb_per_s": 1, "ranks": 0, "host_ranks": 4, "host_latency_us": 2, "host_gb_per_s": 9})");
  EXPECT_EQ(link_of(path).host_ranks, 4);
  EXPECT_EQ(link_of(path).host_latency_us, 2);
  EXPECT_EQ(link_of(path).host_gb_per_s, 9);
  expect_message(R"({"latency_us": 5, "gb_per_s": 1, "ranks": 0, "host_ranks": 4})",
                 "host_gb_per_s is missing");
  write(R"({"latency_us": 5, "gb_per_s": 1, "ranks": 0, "sum_bytes": 0})");
  EXPECT_THROW(link_of(path), Error);
}

}  // namespace
}  // namespace ptrt
