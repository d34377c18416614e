// How near a decode step of one sequence is to the memory's limit: steps in turns with plain reads of as many
// bytes as a step has weights to read, so that whatever changes on the machine within some milliseconds
// changes for both.
//
//   bench_step_read CONFIG.json [--threads N] [--int8] [--runs N]
//
// Random weights, bfloat16 or int8, keys and values in bfloat16, one rank, runs of kSteps tokens from a
// prompt of one. Prints a line of JSON: medians and quartiles over all steps of step_ms, of read_gb_per_s
// (the mean of the reads just before and behind a step), and of `of_read`: the bytes that the step reads,
// weights once and the keys and values so far, over its time and that bandwidth; `of_read_weights` counts
// weights alone. The same apart for every kBlock steps in `blocks`, short: medians alone.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/files.h"
#include "kernels/cpu/host/thread_pool.h"
#include "kernels/make_cpu_backend.h"
#include "model_io/shard/track_shard.h"
#include "runtime/serving/engine.h"
#include "stream_read.h"

namespace ptrt {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr std::int64_t kSteps = 128;
// The backend's workers spin and read ahead for a while behind a step, which must not fall into a read.
constexpr auto kUntilAsleep = std::chrono::microseconds(300);
constexpr std::size_t kLeftOut = 4;                          // first steps of a run
constexpr std::size_t kBlock = 2 * (kSteps - 1 - kLeftOut);  // steps, of two runs

struct Options {
  std::string config;
  int threads = 2, runs = 8;
  bool int8 = false;
};

double seconds(Clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

// Reads as many bytes again and again, an equal share a thread.
class Reader {
 public:
  // Its threads run where the backend's do, and sleep as soon as there is nothing to read.
  Reader(Backend& backend, const CpuOptions& options, std::size_t bytes)
      : pool_(options.threads, options.worker_cores, true),
        share_(bytes / static_cast<std::size_t>(options.threads) / kStreamPiece * kStreamPiece),
        memory_(backend.allocate(this->bytes(), "the stream")) {
    std::fill_n(memory_.get(), this->bytes(), std::byte{1});
  }

  std::size_t bytes() const { return share_ * static_cast<std::size_t>(pool_.threads()); }

  // From when the last thread is awake.
  double read() {
    std::atomic<int> missing = pool_.threads();
    Clock::time_point begin;
    pool_.parallel_for(pool_.threads(), [&](std::int64_t task, int) {
      for (--missing; missing > 0;) wait_a_moment();
      if (task == 0) begin = Clock::now();
      read_stream(memory_.get() + static_cast<std::size_t>(task) * share_, share_);
    });
    return seconds(Clock::now() - begin);
  }

 private:
  static void wait_a_moment() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  ThreadPool pool_;
  std::size_t share_;
  std::shared_ptr<std::byte[]> memory_;
};

// An op for every thread, so that none of them sleeps when the next step begins.
class WakeUp {
 public:
  explicit WakeUp(Backend& backend) : backend_(backend) {
    for (auto& half : memory_) half = backend.allocate(kElements * sizeof(float), "a wake-up");
  }
  void operator()() {
    for (int i = 0; i < 3; ++i)
      backend_.copy({.data = memory_[0].get(), .rows = 8, .width = kElements / 8, .track_stride = kElements},
                    {.data = memory_[1].get(), .rows = 8, .width = kElements / 8, .track_stride = kElements});
  }

 private:
  static constexpr std::int64_t kElements = 128 << 10;
  Backend& backend_;
  std::shared_ptr<std::byte[]> memory_[2];
};

struct Sample {
  double step_s, read_s;
  std::int64_t context;  // tokens that are attended to
};

// Steps of one run between reads; the hook is called before each of them.
std::vector<Sample> run_once(Engine& engine, Reader& reader, WakeUp& wake) {
  Request request;
  request.tokens = {1};
  request.max_tokens = kSteps;
  request.ignore_eos = true;
  std::vector<double> steps, reads;
  Clock::time_point begin;
  const auto between = [&] {
    if (!reads.empty()) steps.push_back(seconds(Clock::now() - begin));
    std::this_thread::sleep_for(kUntilAsleep);
    reads.push_back(reader.read());
    wake();
    begin = Clock::now();
    return false;
  };
  const std::int64_t order[] = {0};
  engine.run(Task::generate, {&request, 1}, order,
             {.completed = [](Completion&&) {}, .stop_requested = between});
  std::vector<Sample> samples;
  for (std::size_t i = kLeftOut; i < steps.size() && i + 1 < reads.size(); ++i)
    samples.push_back({steps[i], (reads[i] + reads[i + 1]) / 2, static_cast<std::int64_t>(i) + 1});
  return samples;
}

Json quartiles(std::vector<double> values) {
  std::ranges::sort(values);
  const auto at = [&](std::size_t quarter) { return values[quarter * (values.size() - 1) / 4]; };
  return {{"median", at(2)}, {"quartiles", {at(1), at(3)}}};
}

struct StepBytes {
  std::size_t weights, token;  // all that are multiplied by; keys and values of a token
};

// The reads have the bytes of the weights.
Json summary(std::span<const Sample> samples, const StepBytes& bytes) {
  std::vector<double> step_ms, read, all, weights;
  for (const Sample& sample : samples) {
    step_ms.push_back(sample.step_s * 1e3);
    read.push_back(static_cast<double>(bytes.weights) / sample.read_s * 1e-9);
    weights.push_back(sample.read_s / sample.step_s);
    const double context = static_cast<double>(sample.context) * static_cast<double>(bytes.token);
    all.push_back(weights.back() * (1 + context / static_cast<double>(bytes.weights)));
  }
  return {{"steps", samples.size()},
          {"step_ms", quartiles(step_ms)},
          {"read_gb_per_s", quartiles(read)},
          {"of_read", quartiles(all)},
          {"of_read_weights", quartiles(weights)}};
}

Json blocks(std::span<const Sample> samples, const StepBytes& bytes) {
  Json result = Json::array();
  for (; samples.size() >= kBlock; samples = samples.subspan(kBlock)) {
    Json block = summary(samples.first(kBlock), bytes);
    for (auto& [key, value] : block.items())
      if (value.is_object()) value = Json(value["median"]);
    result.push_back(block);
  }
  return result;
}

// What a step of one sequence reads: all weights but a table that is only looked up.
std::size_t streamed_bytes(const Backend& backend, const TrackShard& shard) {
  if (shard.embedding.data == shard.lm_head.data) return backend.weight_bytes();
  const Weight& table = shard.embedding;
  return backend.weight_bytes() - static_cast<std::size_t>(table.out * table.in) * size_of(table.dtype);
}

void run(const Options& options) {
  const ModelConfig config =
      parse_config(read_text_file(options.config, "the configuration"), options.config);
  CpuOptions cpu{.threads = options.threads,
                 .compute = options.int8 ? Compute::int8 : Compute::bfloat16,
                 .quantize_int8 = options.int8};
  if (const auto cores = allowed_cores(); cores.size() >= static_cast<std::size_t>(options.threads)) {
    cpu.worker_cores.assign(cores.begin(), cores.begin() + options.threads);
    bind_this_thread(cores.front());
  }
  const auto backend = make_cpu_backend(cpu);
  const TrackShard shard = random_shard(config, 1, DType::bfloat16, 0, config.tracks, *backend);
  const auto comm = make_solo_track_comm();
  const EngineOptions engine_options{.max_batch = 1,
                                     .max_rows = 16,
                                     .kv_pages = (kSteps + kPageTokens) / kPageTokens,
                                     .kv_dtype = DType::bfloat16};
  Engine engine(config, config, shard, *backend, {*comm, *comm}, make_placement(1, 0, config.tracks), nullptr,
                engine_options);
  Reader reader(*backend, cpu, streamed_bytes(*backend, shard));
  WakeUp wake(*backend);
  run_once(engine, reader, wake);  // first touches
  std::vector<Sample> samples;
  for (int i = 0; i < options.runs; ++i)
    for (const Sample& sample : run_once(engine, reader, wake)) samples.push_back(sample);
  const auto token =
      static_cast<std::size_t>(2 * config.tracks * config.layers * config.kv_heads * config.head_dim);
  const StepBytes bytes{reader.bytes(), token * size_of(DType::bfloat16)};
  const Json result = {{"model", config.name},           {"weights", options.int8 ? "int8" : "bfloat16"},
                       {"threads", options.threads},     {"instruction_set", backend->instruction_set()},
                       {"weight_bytes", bytes.weights},  {"kv_bytes_per_token", bytes.token},
                       {"all", summary(samples, bytes)}, {"blocks", blocks(samples, bytes)}};
  std::puts(result.dump().c_str());
}

Options parse(std::span<char*> words) {
  Options options;
  for (std::size_t i = 1; i < words.size(); ++i) {
    const std::string_view word = words[i];
    const auto number = [&] { return i + 1 < words.size() ? std::max(1, std::atoi(words[++i])) : 1; };
    if (word == "--int8")
      options.int8 = true;
    else if (word == "--threads")
      options.threads = number();
    else if (word == "--runs")
      options.runs = number();
    else
      options.config = word;
  }
  if (options.config.empty())
    throw_bad_input("usage: bench_step_read CONFIG.json [--threads N] [--int8] [--runs N]");
  return options;
}

}  // namespace
}  // namespace ptrt

int main(int argc, char** argv) {
  try {
    ptrt::run(ptrt::parse({argv, static_cast<std::size_t>(argc)}));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_step_read: %s\n", e.what());
    return 1;
  }
}
