// The command line and PTRT_FAULT: options, or exit status 0 or 2. A line of the input is a word; the last one is the
// value of PTRT_FAULT.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "driver/target.h"
#include "kernels/base/error.h"
#include "launch/options/command_line.h"
#include "runtime/job/fault.h"
#include "runtime/job/shard.h"

namespace ptrt::fuzz {
namespace {

// Words as they reach a program: without NUL.
std::vector<std::string> words_of(std::string_view input) {
  std::vector<std::string> words(1);
  for (const char c : input) {
    if (c == '\n')
      words.emplace_back();
    else if (c != '\0')
      words.back() += c;
  }
  return words;
}

void check_run_options(const ModelRunOptions& run) {
  expect(run.max_batch >= 1 && run.max_step_tokens >= 1, "--max-batch {}, --max-step-tokens {}",
         run.max_batch, run.max_step_tokens);
  expect(std::isfinite(run.step_timeout_s) && run.step_timeout_s >= 0, "--step-timeout {}",
         run.step_timeout_s);
  expect(run.gpu_memory_fraction > 0 && run.gpu_memory_fraction <= 1, "--gpu-memory-fraction {}",
         run.gpu_memory_fraction);
  if (run.kv_cache_bytes) expect(*run.kv_cache_bytes > 0, "--kv-cache-bytes {}", *run.kv_cache_bytes);
}

void check_command(const Command& command) {
  if (const auto* batch = std::get_if<BatchOptions>(&command)) {
    check_run_options(batch->run);
    expect(batch->shard.empty() || batch->shard == "slurm" || parse_shard(batch->shard), "--shard {}",
           batch->shard);
  }
  if (const auto* doctor = std::get_if<DoctorOptions>(&command)) check_run_options(doctor->run);
  if (const auto* merge = std::get_if<MergeOptions>(&command))
    expect(!merge->output.empty() && !merge->shards.empty(), "nothing to merge");
  if (const auto* bench = std::get_if<BenchOptions>(&command)) {
    check_run_options(bench->run);
    expect(bench->request_rate > 0, "--request-rate {}", bench->request_rate);
    for (const auto& lens : {bench->input_lens, bench->output_lens})
      expect(!lens.empty() && std::ranges::min(lens) >= 1, "a length below 1");
  }
  if (const auto* plan = std::get_if<PlanOptions>(&command))
    expect(!plan->gpus.empty() && std::ranges::min(plan->gpus) >= 1 && plan->batch >= 1,
           "--gpus or --batch below 1");
}

}  // namespace

void run_input(std::string_view input) {
  std::vector<std::string> words = words_of(input);
  setenv("PTRT_FAULT", words.back().c_str(), 1);
  words.pop_back();
  std::vector<const char*> argv{"ptrt"};
  for (const std::string& word : words) argv.push_back(word.c_str());
  const auto argc = static_cast<int>(argv.size());
  argv.push_back(nullptr);
  const CommandLine line = parse_command_line(argc, argv.data());
  const bool runs = !std::holds_alternative<std::monostate>(line.command);
  expect(runs != line.exit_code.has_value(), "neither a command nor an exit status");
  if (line.exit_code) {
    expect(*line.exit_code == 0 || *line.exit_code == 2, "exit status {}", *line.exit_code);
    expect(!(*line.exit_code == 0 ? line.out : line.err).empty(), "exit status {} without a word",
           *line.exit_code);
  }
  if (runs) check_command(line.command);
  try {
    arm_faults(0);
  } catch (const Error& error) {
    expect(error.code() == ExitCode::bad_input, "exit status {}: {}", static_cast<int>(error.code()),
           error.what());
  }
}

std::string mutate_input(std::string input, Random& random) {
  constexpr auto kWords = std::to_array<std::string_view>({
      "generate",
      "score",
      "bench",
      "init",
      "inspect",
      "quantize",
      "pack",
      "plan",
      "doctor",
      "merge",
      "m.h5",
      "-o",
      "--output",
      "-",
      "--",
      "--help",
      "-h",
      "--version",
      "--resume",
      "--shard",
      "1/2",
      "slurm",
      "--quiet",
      "--threads",
      "--max-batch",
      "--max-step-tokens",
      "--kv-cache-bytes",
      "--replicas",
      "--tensor-parallel",
      "--vocab-head",
      "--step-timeout",
      "--compute",
      "--weights",
      "--kv-dtype",
      "--bind",
      "--backend",
      "--fusion",
      "--gpu-memory-fraction",
      "--share-gpu",
      "--cuda-graphs",
      "--input-len",
      "--output-len",
      "--dataset",
      "--requests",
      "--request-rate",
      "--warmup",
      "--seed",
      "--json",
      "--csv",
      "--random-weights",
      "--emulate-ranks",
      "--link-latency-us",
      "--link-gb-per-s",
      "--dtype",
      "--split",
      "--layout",
      "--verify",
      "--ranks",
      "--gpus",
      "--gpu",
      "--link",
      "--batch",
      "auto",
      "cpu",
      "int8",
      "fp8_e4m3",
      "float32",
      "bfloat16",
      "panels",
      "0",
      "1",
      "8",
      "-1",
      "1e9",
      "nan",
      "inf",
      "-inf",
      "1e400",
      "0x10",
      "4G",
      "512K",
      "3MB",
      "1T",
      "9223372036854775807",
      "9223372036854775808",
      "18446744073709551616",
      "1,2,3",
      "1,,2",
      "",
      "[1,2]",
      "true",
      "--threads=4",
      "--quiet=false",
      "--kv-cache-bytes=1e3",
      "-ofile",
      "%%",
      "@x",
      "rank=0,at=step",
      "rank=1,at=load,after=2,pause_ms=5",
      "at=",
      "rank=99999999999999999999",
  });
  if (random.one_in(4)) return mutate_bytes(std::move(input), random);
  std::vector<std::string> words = words_of(input);
  const std::size_t at = random.below(words.size());
  const auto place = words.begin() + static_cast<std::ptrdiff_t>(at);
  switch (random.below(4)) {
    case 0:
      words[at] = random.pick(kWords);
      break;
    case 1:
      words.insert(place, std::string(random.pick(kWords)));
      break;
    case 2:
      words.erase(place);
      break;
    default:
      words[at] = mutate_bytes(words[at], random);
  }
  std::string text;
  for (const std::string& word : words) text += (&word == words.data() ? "" : "\n") + word;
  return text;
}

}  // namespace ptrt::fuzz
