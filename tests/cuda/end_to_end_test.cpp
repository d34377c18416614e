// Whole models through the engine: the CUDA backend against the CPU backend in float32.
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "device_test.h"
#include "model_io/model_file.h"
#include "model_io/tokenizer.h"
#include "model_io/track_shard.h"
#include "runtime/engine.h"
#include "runtime/memory_plan.h"

#ifndef PTRT_DEMO_MODEL
#error "PTRT_DEMO_MODEL comes from CMake"
#endif

namespace ptrt::testing {
namespace {

// One process with all tracks.
class Runner {
 public:
  Runner(const ModelConfig& config, std::unique_ptr<Backend> backend, TrackShard shard, DType kv_dtype,
         const Tokenizer* tokenizer, std::int64_t max_rows)
      : backend_(std::move(backend)),
        shard_(std::move(shard)),
        comm_(make_solo_track_comm()),
        placement_(make_placement(1, 0, config.tracks)),
        engine_(config, config, shard_, *backend_, {*comm_, *comm_}, placement_, tokenizer,
                {.max_batch = 4, .max_rows = max_rows, .kv_pages = 64, .kv_dtype = kv_dtype}) {}

  std::vector<Completion> run(Task task, std::span<const Request> requests) {
    std::vector<std::int64_t> order(requests.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
    std::vector<Completion> completions(requests.size());
    Engine::Hooks hooks;
    hooks.completed = [&](Completion&& done) { completions[static_cast<std::size_t>(done.request)] = done; };
    EXPECT_TRUE(engine_.run(task, requests, order, hooks));
    return completions;
  }

 private:
  std::unique_ptr<Backend> backend_;
  TrackShard shard_;
  std::unique_ptr<TrackComm> comm_;
  Placement placement_;
  Engine engine_;
};

// Mean distance of the log-probabilities of all tokens; the tokens must be equal.
double compare(const std::vector<Completion>& cuda, const std::vector<Completion>& cpu) {
  double distance = 0;
  std::size_t count = 0;
  for (std::size_t i = 0; i < cpu.size(); ++i) {
    EXPECT_EQ(cuda[i].tokens, cpu[i].tokens)
        << "request " << i << ": " << cuda[i].text << " for " << cpu[i].text;
    EXPECT_EQ(cuda[i].logprobs.size(), cpu[i].logprobs.size());
    for (std::size_t p = 0; p < std::min(cuda[i].logprobs.size(), cpu[i].logprobs.size()); ++p, ++count)
      distance += std::abs(double{cuda[i].logprobs[p]} - double{cpu[i].logprobs[p]});
  }
  return distance / static_cast<double>(std::max<std::size_t>(count, 1));
}

class CudaEndToEnd : public ::testing::Test {
 protected:
  void SetUp() override {
    CudaForTests cuda = make_cuda_for_tests();
    if (cuda.backend == nullptr) GTEST_SKIP() << cuda.missing;
    cuda_ = std::move(cuda.backend);
  }
  std::unique_ptr<Backend> cuda_;
};

TEST_F(CudaEndToEnd, DemoModelAnswersAsOnTheCpu) {
  const char* elsewhere = std::getenv("PTRT_DEMO_MODEL");  // of programs that were moved
  const ModelFile file(elsewhere != nullptr ? elsewhere : PTRT_DEMO_MODEL);
  const ModelConfig& config = file.config();
  const TokenizerChoice tokenizer = make_tokenizer(file.tokenizer(), config);
  ASSERT_NE(tokenizer.tokenizer, nullptr);
  const auto runner = [&](std::unique_ptr<Backend> backend, DType kv_dtype) {
    TrackShard shard = load_shard(file, 0, config.tracks, *backend);
    return std::make_unique<Runner>(config, std::move(backend), std::move(shard), kv_dtype,
                                    tokenizer.tokenizer.get(), 24);
  };
  const auto cuda = runner(std::move(cuda_), DType::bfloat16);
  const auto cpu = runner(make_cpu_backend({.threads = 1}), DType::float32);

  std::vector<Request> prompts;
  for (const char* text : {"Add 36 and 72.\n", "Subtract 28 from 77.\n"}) {
    Request request;
    request.tokens = tokenizer.tokenizer->encode(text);
    if (config.bos_token_id)
      request.tokens.insert(request.tokens.begin(), static_cast<std::int32_t>(*config.bos_token_id));
    request.max_tokens = 6;
    request.logprobs = true;
    prompts.push_back(request);
  }
  const auto answers = cuda->run(Task::generate, prompts);
  EXPECT_LT(compare(answers, cpu->run(Task::generate, prompts)), 3e-2);
  EXPECT_EQ(answers[0].text.substr(0, 3), "108");
  EXPECT_EQ(answers[1].text.substr(0, 2), "49");
}

// The plan, made before anything is there, covers what is then taken, and little more.
#ifdef PTRT_CUDA_EMULATION
constexpr std::int64_t kPlanSlack = 32 << 10;  // rounding of each piece
#else
constexpr std::int64_t kPlanSlack =
    kDeviceReserveBytes;  // a device hands out 2 MiB at a time, and loads kernels
#endif

std::int64_t taken_since(std::size_t free_before, Backend& backend) {
  return static_cast<std::int64_t>(free_before) - static_cast<std::int64_t>(*backend.free_bytes());
}

// Every kind of layer, norm, fusion and attention.
const char* const kSmall = R"({
  "name": "small", "tracks": 3, "layers": 3, "sync_layers": [1, 3],
  "fusion": {"op": "delta_sum", "dispatch_norm": true, "combine_norm": true},
  "hidden_size": 40, "heads": 4, "kv_heads": 2, "head_dim": 12, "ffn_size": 36,
  "vocab_size": 91, "max_context": 64, "norm_eps": 1e-5, "norm_placement": ["pre", "output", "post"],
  "qk_norm": true, "attention_pattern": ["global_rope", "local_nope", "local_rope"], "attention_window": 7,
  "rope_theta": 500.0, "ffn_pattern": ["dense", "moe"],
  "moe": {"experts": 4, "top_k": 2, "ffn_size": 16, "router_logit_cap": 20.0},
  "tie_embeddings": false, "bos_token_id": null, "eos_token_ids": []})";

TEST_F(CudaEndToEnd, TakesThePlannedMemory) {
  auto json = nlohmann::json::parse(kSmall);
  json["max_context"] = 1024;  // several splits of decode attention
  const ModelConfig config = parse_config(json.dump(), "the test's configuration");
  Backend& backend = *cuda_;
  const std::size_t start = *backend.free_bytes();
  TrackShard shard = random_shard(config, 5, DType::bfloat16, 0, config.tracks, backend);
  const DeviceNeeds needs = device_needs(config, 0, config.tracks, DType::bfloat16, 4, 20);
  EXPECT_LE(std::abs(taken_since(start, backend) - needs.weights), kPlanSlack);
  const std::size_t loaded = *backend.free_bytes();
  const Runner runner(config, std::move(cuda_), std::move(shard), DType::bfloat16, nullptr, 20);
  EXPECT_LE(std::abs(needs.scratch + 64 * needs.kv_page - taken_since(loaded, backend)), kPlanSlack);
#ifdef PTRT_CUDA_EMULATION
  EXPECT_GE(needs.scratch + 64 * needs.kv_page, taken_since(loaded, backend));
#endif
}

TEST_F(CudaEndToEnd, ScoresEveryKindOfModel) {
  const std::pair<const char*, const char*> kinds[] = {{R"(["pre"])", "mean"},
                                                       {R"(["post"])", "sum"},
                                                       {R"(["output"])", "delta_sum"},
                                                       {R"(["pre", "output", "post"])", "delta_sum"}};
  for (const auto& [norms, op] : kinds) {
    auto json = nlohmann::json::parse(kSmall);
    json["norm_placement"] = nlohmann::json::parse(norms);
    json["fusion"]["op"] = op;
    json["fusion"]["dispatch_norm"] = json["tie_embeddings"] = std::string(op) == "sum";
    const ModelConfig config = parse_config(json.dump(), "the test's configuration");
    CudaForTests cuda = make_cuda_for_tests();
    const auto runner = [&](std::unique_ptr<Backend> backend, DType kv_dtype) {
      TrackShard shard = random_shard(config, 5, DType::bfloat16, 0, config.tracks, *backend);
      return std::make_unique<Runner>(config, std::move(backend), std::move(shard), kv_dtype, nullptr, 20);
    };
    const auto on_cuda = runner(std::move(cuda.backend), DType::bfloat16);
    const auto on_cpu = runner(make_cpu_backend({.threads = 1}), DType::float32);
    Random random(3);
    std::vector<Request> texts(2);
    for (std::size_t i = 0; i < texts.size(); ++i)
      for (int n = 0; n < 12 + 11 * static_cast<int>(i); ++n) texts[i].tokens.push_back(random.below(91));
    EXPECT_LT(compare(on_cuda->run(Task::score, texts), on_cpu->run(Task::score, texts)), 3e-2)
        << norms << " " << op;
  }
}

}  // namespace
}  // namespace ptrt::testing
