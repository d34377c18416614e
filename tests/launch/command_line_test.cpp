#include "launch/options/command_line.h"

#include <gtest/gtest.h>

#include <cmath>
#include <initializer_list>
#include <vector>

namespace ptrt {
namespace {

CommandLine parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "ptrt");
  return parse_command_line(static_cast<int>(arguments.size()), arguments.data());
}

ModelRunOptions run_options(std::initializer_list<const char*> options) {
  std::vector<const char*> arguments{"generate", "model.h5", "requests.jsonl", "-o", "results.jsonl"};
  arguments.insert(arguments.end(), options);
  const CommandLine line = parse(arguments);
  EXPECT_FALSE(line.exit_code.has_value());
  return std::get<BatchOptions>(line.command).run;
}

int exit_code(std::initializer_list<const char*> options) {
  std::vector<const char*> arguments{"bench", "model.h5"};
  arguments.insert(arguments.end(), options);
  return parse(arguments).exit_code.value_or(-1);
}

TEST(CommandLine, SizesArePowersOf1024) {
  const auto bytes = [](const char* text) { return *run_options({"--kv-cache-bytes", text}).kv_cache_bytes; };
  EXPECT_EQ(bytes("64"), 64);
  EXPECT_EQ(bytes("2K"), 2048);
  EXPECT_EQ(bytes("3m"), 3 << 20);
  EXPECT_EQ(bytes("512MB"), 512 << 20);
  EXPECT_EQ(bytes("512Mb"), 512 << 20);
  EXPECT_EQ(bytes("4GB"), std::int64_t{4} << 30);
  EXPECT_EQ(bytes("1T"), std::int64_t{1} << 40);
  EXPECT_EQ(bytes("7KiB"), 7 << 10);
  EXPECT_FALSE(run_options({}).kv_cache_bytes.has_value());
  for (const char* bad :
       {"", "K", "1X", "-1", "0", "1.5G", "0x10", "12KB3", "999999999999999G", "99999999999999999999"})
    EXPECT_EQ(exit_code({"--kv-cache-bytes", bad}), 2) << bad;
}

TEST(CommandLine, NamesBecomeValues) {
  const ModelRunOptions defaults = run_options({});
  EXPECT_EQ(defaults.device, std::nullopt);
  EXPECT_EQ(defaults.compute, std::nullopt);
  EXPECT_EQ(defaults.kv_dtype, std::nullopt);
  EXPECT_EQ(defaults.vocab_head, std::nullopt);
  EXPECT_EQ(defaults.fusion, DeviceFusion::automatic);
  EXPECT_TRUE(defaults.bind_threads);
  EXPECT_TRUE(defaults.cuda_graphs);
  EXPECT_FALSE(defaults.int8_weights);
  const ModelRunOptions given = run_options({"--backend", "cuda", "--compute", "int8", "--kv-dtype",
                                             "bfloat16", "--vocab-head", "split", "--fusion", "nccl",
                                             "--bind", "none", "--cuda-graphs", "off", "--weights", "int8"});
  EXPECT_EQ(given.device, Device::cuda);
  EXPECT_EQ(given.compute, Compute::int8);
  EXPECT_EQ(given.kv_dtype, DType::bfloat16);
  EXPECT_EQ(given.vocab_head, VocabHeadMode::split);
  EXPECT_EQ(given.fusion, DeviceFusion::nccl);
  EXPECT_FALSE(given.bind_threads);
  EXPECT_FALSE(given.cuda_graphs);
  EXPECT_TRUE(given.int8_weights);
  EXPECT_EQ(run_options({"--compute", "auto"}).compute, std::nullopt);
  for (const char* option : {"--backend", "--compute", "--kv-dtype", "--vocab-head", "--fusion", "--bind",
                             "--cuda-graphs", "--weights"})
    for (const char* bad : {"", "1", "Auto", "other"})
      EXPECT_EQ(exit_code({option, bad}), 2) << option << bad;
}

TEST(CommandLine, RequestRate) {
  const auto rate = [](std::vector<const char*> options) {
    options.insert(options.begin(), {"bench", "model.h5"});
    return std::get<BenchOptions>(parse(options).command).request_rate;
  };
  EXPECT_TRUE(std::isinf(rate({})));
  EXPECT_TRUE(std::isinf(rate({"--request-rate", "inf"})));
  EXPECT_EQ(rate({"--request-rate", "0.1"}), 0.1);
  for (const char* bad : {"", "0", "-1", "fast", "1x", "nan", "0x10", "infinity", "1e999", "-inf"})
    EXPECT_EQ(exit_code({"--request-rate", bad}), 2) << bad;
}

// Of every command that has them; with what must come along.
const std::vector<std::vector<const char*>> kIntegers = {
    {"generate", "m", "r", "-o", "o", "--replicas"},
    {"generate", "m", "r", "-o", "o", "--tensor-parallel"},
    {"generate", "m", "r", "-o", "o", "--max-batch"},
    {"generate", "m", "r", "-o", "o", "--max-step-tokens"},
    {"score", "m", "r", "-o", "o", "--threads"},
    {"score", "m", "r", "-o", "o", "--kv-cache-bytes"},
    {"score", "m", "--text", "t", "--window"},
    {"score", "m", "--text", "t", "--stride"},
    {"bench", "m", "--input-len"},
    {"bench", "m", "--output-len"},
    {"bench", "m", "--requests"},
    {"bench", "m", "--warmup"},
    {"bench", "m", "--seed"},
    {"bench", "m", "--link-gb-per-s", "1", "--emulate-ranks"},
    {"init", "c", "-o", "o", "--seed"},
    {"inspect", "m", "--ranks"},
    {"plan", "c", "--gpus"},
    {"plan", "c", "--input-len"},
    {"plan", "c", "--output-len"},
    {"plan", "c", "--batch"},
    {"plan", "c", "--max-step-tokens"},
};
const std::vector<std::vector<const char*>> kNumbers = {
    {"generate", "m", "r", "-o", "o", "--step-timeout"},
    {"score", "m", "r", "-o", "o", "--gpu-memory-fraction"},
    {"bench", "m", "--request-rate"},
    {"bench", "m", "--emulate-ranks", "2", "--link-gb-per-s", "1", "--link-latency-us"},
    {"bench", "m", "--emulate-ranks", "2", "--link-gb-per-s"},
};

int exit_code_with(std::vector<const char*> arguments, const char* value) {
  arguments.push_back(value);
  return parse(arguments).exit_code.value_or(-1);
}

TEST(CommandLine, NumbersAreNumbers) {
  for (const auto& option : kIntegers) {
    EXPECT_EQ(exit_code_with(option, "1"), -1) << option.back();
    for (const char* bad :
         {"1.5", "1e3", "4294967296000000000000", "18446744073709551616", "0b1", "0o7", "1_0", "1'0"})
      EXPECT_EQ(exit_code_with(option, bad), 2) << option.back() << ' ' << bad;
  }
  for (const auto& option : kNumbers) EXPECT_EQ(exit_code_with(option, "0.5"), -1) << option.back();
  for (const auto* options : {&kIntegers, &kNumbers})
    for (const auto& option : *options)
      for (const char* bad : {"nan", "-nan", "NAN", "nan(1)", "-inf", "infinity", "1e999", "0x10", "0x1p3",
                              "+1", " 1", "1 ", "", "1x", "-1", "one"})
        EXPECT_EQ(exit_code_with(option, bad), 2) << option.back() << ' ' << bad;
}

TEST(CommandLine, NumbersAreDecimal) {
  EXPECT_EQ(run_options({"--threads", "010"}).threads, 10);
  EXPECT_EQ(run_options({"--threads", "08"}).threads, 8);
  EXPECT_EQ(run_options({"--step-timeout", "1e3"}).step_timeout_s, 1000);
  EXPECT_EQ(run_options({"--step-timeout", "0"}).step_timeout_s, 0);
  const CommandLine line = parse({"init", "c", "-o", "o", "--seed", "18446744073709551615"});
  EXPECT_EQ(std::get<InitOptions>(line.command).seed, UINT64_MAX);
}

TEST(CommandLine, FilesHaveNames) {
  const std::vector<std::vector<const char*>> with_empty = {
      {"generate", "", "r", "-o", "o"},
      {"generate", "m", "", "-o", "o"},
      {"generate", "m", "r", "-o", ""},
      {"generate", "m", "r", "--output="},
      {"score", "m", "r", "-o", ""},
      {"score", "m", "--text", ""},
      {"bench", ""},
      {"bench", "m", "--json", ""},
      {"bench", "m", "--csv", ""},
      {"bench", "m", "--dataset", ""},
      {"bench", "--random-weights", ""},
      {"init", "", "-o", "o"},
      {"init", "c", "-o", ""},
      {"quantize", "", "-o", "o", "--weights", "int8"},
      {"quantize", "m", "-o", "", "--weights", "int8"},
      {"pack", "", "-o", "o"},
      {"pack", "m", "-o", ""},
      {"inspect", ""},
      {"plan", ""},
      {"plan", "c", "--json", ""},
      {"plan", "c", "--gpu", ""},
      {"plan", "c", "--link", ""},
  };
  for (const auto& arguments : with_empty)
    EXPECT_EQ(parse(arguments).exit_code, 2) << arguments[0] << ' ' << arguments.back();
}

TEST(CommandLine, EmulatedRanks) {
  const CommandLine line =
      parse({"bench", "model.h5", "--emulate-ranks", "8", "--link-latency-us", "20", "--link-gb-per-s", "5"});
  const auto& emulated = std::get<BenchOptions>(line.command).run.emulated;
  ASSERT_TRUE(emulated.has_value());
  EXPECT_EQ(emulated->ranks, 8);
  EXPECT_EQ(emulated->link.latency_us, 20);
  EXPECT_EQ(emulated->link.gb_per_s, 5);
  EXPECT_FALSE(std::get<BenchOptions>(parse({"bench", "model.h5"}).command).run.emulated.has_value());
  EXPECT_EQ(exit_code({"--emulate-ranks", "8"}), 2);
  EXPECT_EQ(exit_code({"--link-gb-per-s", "5"}), 2);
}

TEST(CommandLine, AScoreIsOfRequestsOrOfAText) {
  const CommandLine line = parse({"score", "m", "--text", "t", "--window", "8", "--stride", "3"});
  const auto& options = std::get<BatchOptions>(line.command);
  EXPECT_EQ(options.task, Task::score);
  EXPECT_EQ(options.text, "t");
  EXPECT_EQ(options.window, 8);
  EXPECT_EQ(options.stride, 3);
  EXPECT_EQ(line.common.at("--window"), "8");
  EXPECT_EQ(parse({"score", "m", "--text", "t", "-o", "o", "--resume"}).exit_code, std::nullopt);
  EXPECT_FALSE(line.common.contains("--text")) << "only rank 0 reads it";
  const std::vector<std::vector<const char*>> bad = {{"score", "m"},
                                                     {"score", "m", "r"},
                                                     {"score", "m", "-o", "o"},
                                                     {"score", "m", "r", "-o", "o", "--text", "t"},
                                                     {"score", "m", "--text", "t", "--resume"},
                                                     {"score", "m", "r", "-o", "o", "--window", "8"},
                                                     {"score", "m", "r", "-o", "o", "--stride", "8"},
                                                     {"generate", "m", "--text", "t"}};
  for (const auto& arguments : bad) EXPECT_EQ(parse(arguments).exit_code, 2) << arguments.back();
}

TEST(CommandLine, ProgressOfABatch) {
  const auto batch = [](std::vector<const char*> more) {
    std::vector<const char*> arguments{"generate", "m", "r", "-o", "o"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return parse(arguments);
  };
  const auto style = [&](std::vector<const char*> more) {
    return std::get<BatchOptions>(batch(std::move(more)).command).shown_progress();
  };
  EXPECT_TRUE(style({}).shown);
  EXPECT_FALSE(style({}).log_every_s.has_value());
  EXPECT_EQ(style({"--log-every", "0.5"}).log_every_s, 0.5);
  EXPECT_FALSE(style({"--no-progress"}).shown);
  EXPECT_FALSE(style({"--quiet"}).shown);
  EXPECT_FALSE(std::get<BatchOptions>(batch({"--no-progress"}).command).run.quiet) << "the summary stays";
  for (const char* bad : {"-1", "nan", "soon", "1e7"})
    EXPECT_EQ(batch({"--log-every", bad}).exit_code, 2) << bad;
  EXPECT_EQ(batch({"--log-every", "5", "--no-progress"}).exit_code, 2);
  EXPECT_EQ(parse({"bench", "m", "--no-progress"}).exit_code, 2) << "it shows none";
  EXPECT_FALSE(batch({"--log-every", "5"}).common.contains("--log-every")) << "a rank's own affair";
  EXPECT_FALSE(batch({"--no-progress"}).common.contains("--no-progress"));
}

TEST(CommandLine, AShardIsOneOfSoMany) {
  const auto shard = [](const char* text) {
    return parse({"generate", "m", "r", "-o", "o", "--shard", text});
  };
  EXPECT_EQ(std::get<BatchOptions>(shard("3/4").command).shard, "3/4");
  EXPECT_EQ(std::get<BatchOptions>(shard("slurm").command).shard, "slurm");
  EXPECT_EQ(shard("3/4").common.at("--shard"), "3/4") << "all ranks run the same shard";
  EXPECT_EQ(std::get<BatchOptions>(parse({"score", "m", "r", "-o", "o", "--shard", "0/1"}).command).shard,
            "0/1");
  for (const char* bad : {"4/4", "-1/4", "1", "1/0", "a/b", "Slurm", ""})
    EXPECT_EQ(shard(bad).exit_code, 2) << bad;
  EXPECT_EQ(parse({"score", "m", "--text", "t", "--shard", "0/2"}).exit_code, 2) << "a text has no lines";
  EXPECT_EQ(parse({"bench", "m", "--shard", "0/2"}).exit_code, 2);
  const CommandLine merge = parse({"merge", "out", "a", "b"});
  EXPECT_EQ(std::get<MergeOptions>(merge.command).output, "out");
  EXPECT_EQ(std::get<MergeOptions>(merge.command).shards, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(parse({"merge", "out"}).exit_code, 2);
  EXPECT_EQ(parse({"merge", "out", "a", ""}).exit_code, 2);
}

TEST(CommandLine, EachCommandHasItsOptions) {
  EXPECT_EQ(std::get<BatchOptions>(parse({"score", "m", "r", "-o", "o"}).command).task, Task::score);
  EXPECT_EQ(std::get<InitOptions>(parse({"init", "c", "-o", "o", "--dtype", "float32"}).command).dtype,
            DType::float32);
  EXPECT_EQ(std::get<InitOptions>(parse({"init", "c", "-o", "o"}).command).dtype, DType::bfloat16);
  EXPECT_EQ(std::get<PackOptions>(parse({"pack", "m", "-o", "o", "--layout", "rows"}).command).layout,
            WeightLayout::rows);
  EXPECT_TRUE(
      std::get<QuantizeOptions>(parse({"quantize", "m", "-o", "o", "--weights", "int8", "--split"}).command)
          .split);
  EXPECT_EQ(
      std::get<QuantizeOptions>(parse({"quantize", "m", "-o", "o", "--weights", "int8"}).command).weights,
      DType::int8);
  EXPECT_EQ(
      std::get<QuantizeOptions>(parse({"quantize", "m", "-o", "o", "--weights", "fp8_e4m3"}).command).weights,
      DType::float8_e4m3);
  EXPECT_EQ(std::get<InspectOptions>(parse({"inspect", "m", "--ranks", "3"}).command).ranks, 3);
  EXPECT_EQ(std::get<PlanOptions>(parse({"plan", "c", "--gpus", "4,8"}).command).gpus,
            (std::vector<std::int64_t>{4, 8}));
  EXPECT_EQ(parse({"quantize", "m", "-o", "o"}).exit_code, 2);
  EXPECT_EQ(parse({"quantize", "m", "-o", "o", "--weights", "int4"}).exit_code, 2);
  EXPECT_EQ(parse({"bench"}).exit_code, 2);
  EXPECT_EQ(parse({"generat"}).exit_code, 2);
  EXPECT_EQ(parse({}).exit_code, 2);
  EXPECT_EQ(parse({"bench", "--help"}).exit_code, 0);
}

TEST(ModelRunOptions, AStepHasRoomForTheBatch) {
  EXPECT_EQ(run_options({"--max-step-tokens", "8", "--max-batch", "3"}).max_step_rows(), 8);
  EXPECT_EQ(run_options({"--max-step-tokens", "8", "--max-batch", "30"}).max_step_rows(), 30);
}

}  // namespace
}  // namespace ptrt
