// Whole models through the engine: the CUDA backend against the CPU backend in float32.
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "cuda/model_distance.h"
#include "kernels/make_cpu_backend.h"
#include "model_io/file/model_file.h"
#include "model_io/model_fixture.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"
#include "ops/fixtures/cuda_provider.h"
#include "ops/fixtures/test_tensors.h"
#include "runtime/engine_fixture.h"
#include "runtime/serving/memory_plan.h"

#ifndef PTRT_DEMO_MODEL
#error "PTRT_DEMO_MODEL comes from CMake"
#endif

namespace ptrt::testing {
namespace {

// The same model with every tensor rounded to float16.
void write_as_float16(const ModelFile& model, const std::string& path) {
  ModelWriter writer(path, model.config(), false);
  for (const TensorSpec& spec : all_tensors(model.config())) {
    const StoredTensor stored = model.stat(spec);
    const auto reader = model.open(stored);
    std::vector<std::byte> bytes(static_cast<std::size_t>(spec.elements()) * size_of(stored.dtype));
    reader->content().read(0, bytes);
    std::vector<float> wide(static_cast<std::size_t>(spec.elements()));
    widen(stored.dtype, bytes.data(), spec.elements(), wide.data());
    writer.write(spec, DType::float16, [&](std::int64_t first, std::span<std::byte> to) {
      for (std::size_t i = 0; 2 * i < to.size(); ++i) {
        const std::uint16_t narrow = to_float16(wide[static_cast<std::size_t>(first) + i]);
        std::memcpy(to.data() + 2 * i, &narrow, sizeof narrow);
      }
    });
  }
  writer.write_tokenizer(model.tokenizer());
  writer.commit();
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

// The parameter is the type of activations, which is also that of the model's tensors.
class CudaModels : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    CudaForTests cuda = make_cuda_for_tests({.activation_dtype = GetParam()});
    if (cuda.backend == nullptr) GTEST_SKIP() << cuda.missing;
    cuda_ = std::move(cuda.backend);
  }
  std::unique_ptr<Backend> cuda_;
};
INSTANTIATE_TEST_SUITE_P(Every, CudaModels, ::testing::Values(DType::bfloat16, DType::float16),
                         [](const auto& dtype) { return std::string(to_string(dtype.param)); });

std::string demo_model() {
  const char* elsewhere = std::getenv("PTRT_DEMO_MODEL");  // of programs that were moved
  return elsewhere != nullptr ? elsewhere : PTRT_DEMO_MODEL;
}

TEST_P(CudaModels, DemoModelAnswersAsOnTheCpu) {
  std::string path = demo_model();
  const TempFolder folder;
  if (GetParam() == DType::float16) {
    write_as_float16(ModelFile(path), folder / "float16.h5");
    path = folder / "float16.h5";
  }
  const ModelFile file(path);
  const ModelConfig& config = file.config();
  const TokenizerChoice tokenizer = make_tokenizer(file.tokenizer(), config);
  ASSERT_NE(tokenizer.tokenizer, nullptr);
  const auto runner = [&](std::unique_ptr<Backend> backend, DType kv_dtype) {
    TrackShard shard = load_shard(file, 0, config.tracks, *backend);
    const EngineOptions options{.max_batch = 4, .max_rows = 24, .kv_pages = 64, .kv_dtype = kv_dtype};
    return std::make_unique<EngineRunner>(config, std::move(backend), std::move(shard),
                                          tokenizer.tokenizer.get(), options);
  };
  const auto cuda = runner(std::move(cuda_), GetParam());
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
  EXPECT_LT(compare(answers, cpu->run(Task::generate, prompts)), allowed_distance(GetParam()));
  // The answers are all but certain; the questions are not.
  EXPECT_LT(compare(cuda->run(Task::score, prompts), cpu->run(Task::score, prompts)),
            allowed_distance(GetParam()));
  EXPECT_EQ(answers[0].text.substr(0, 3), "108");
  EXPECT_EQ(answers[1].text.substr(0, 2), "49");
}

// The plan, made before anything is there, covers what is then taken, and little more.
// The emulation rounds each piece; a GPU hands out 2 MiB at a time, and loads kernels.
std::int64_t plan_slack() {
  return cuda_kind() == CudaKind::emulated ? 32 << 10 : kDeviceReserveBytes;
}

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
  const DeviceNeeds needs = device_needs(config, make_placement(1, 0, config.tracks), {}, 4, 20);
  EXPECT_LE(std::abs(taken_since(start, backend) - needs.weights), plan_slack());
  const std::size_t loaded = *backend.free_bytes();
  // With the page that recorded steps need, 64 of them.
  const EngineOptions options{.max_batch = 4,
                              .max_rows = 20,
                              .kv_pages = backend.traits().records_steps ? 63 : 64,
                              .kv_dtype = DType::bfloat16};
  const EngineRunner runner(config, std::move(cuda_), std::move(shard), nullptr, options);
  EXPECT_LE(std::abs(needs.scratch + 64 * needs.kv_page - taken_since(loaded, backend)), plan_slack());
  if (cuda_kind() == CudaKind::emulated) {
    EXPECT_GE(needs.scratch + 64 * needs.kv_page, taken_since(loaded, backend));
  }
}

TEST_P(CudaModels, ScoresEveryKindOfModel) {
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
    CudaForTests cuda = make_cuda_for_tests({.activation_dtype = GetParam()});
    const auto runner = [&](std::unique_ptr<Backend> backend, DType kv_dtype) {
      TrackShard shard = random_shard(config, 5, GetParam(), 0, config.tracks, *backend);
      const EngineOptions options{.max_batch = 4, .max_rows = 20, .kv_pages = 64, .kv_dtype = kv_dtype};
      return std::make_unique<EngineRunner>(config, std::move(backend), std::move(shard), nullptr, options);
    };
    const auto on_cuda = runner(std::move(cuda.backend), GetParam());
    const auto on_cpu = runner(make_cpu_backend({.threads = 1}), DType::float32);
    Random random(3);
    std::vector<Request> texts(2);
    for (std::size_t i = 0; i < texts.size(); ++i)
      for (int n = 0; n < 12 + 11 * static_cast<int>(i); ++n) texts[i].tokens.push_back(random.below(91));
    texts[1].score_from = 7;
    EXPECT_LT(compare(on_cuda->run(Task::score, texts), on_cpu->run(Task::score, texts)),
              allowed_distance(GetParam()))
        << norms << " " << op;
  }
}

// Steps recorded or not, tokens taken at once or a step late, pages for all or for few.
class CudaSteps : public CudaEndToEnd {
 protected:
  std::unique_ptr<EngineRunner> make(const ModelConfig& config, const ModelFile* file,
                                     const Tokenizer* tokenizer, bool graphs, EngineOptions options) {
    CudaForTests cuda = make_cuda_for_tests({.graphs = graphs});
    TrackShard shard = file != nullptr
                           ? load_shard(*file, 0, config.tracks, *cuda.backend)
                           : random_shard(config, 7, DType::bfloat16, 0, config.tracks, *cuda.backend);
    options.kv_dtype = DType::bfloat16;
    return std::make_unique<EngineRunner>(config, std::move(cuda.backend), std::move(shard), tokenizer,
                                          options);
  }

  struct Way {
    bool graphs;
    int steps_ahead;
    bool few_pages;
  };
  // Each way of running against the plainest. `few_pages`: so few that sequences are preempted, and computed
  // again by other kernels. A random model's choices are close: there the plainest way has few pages too.
  void compare_ways(const ModelConfig& config, const ModelFile* file, const Tokenizer* tokenizer,
                    const std::vector<Request>& requests, std::int64_t few_pages, const Way& plainest,
                    std::span<const Way> ways) {
    const EngineOptions plain{.max_batch = 5,
                              .max_rows = 16,
                              .kv_pages = plainest.few_pages ? few_pages : 64,
                              .steps_ahead = plainest.steps_ahead};
    const auto expected =
        make(config, file, tokenizer, plainest.graphs, plain)->run(Task::generate, requests);
    for (const Way& way : ways) {
      EngineOptions options = plain;
      options.kv_pages = way.few_pages ? few_pages : 64;
      options.steps_ahead = way.steps_ahead;
      const std::string where =
          fmt::format("graphs {}, {} ahead, {} pages", way.graphs, way.steps_ahead, options.kv_pages);
      const std::uint64_t replays_before = graph_launches_for_tests();
      const auto runner = make(config, file, tokenizer, way.graphs, options);
      const auto actual = runner->run(Task::generate, requests);
      expect_same(actual, expected, where);
      EXPECT_LT(compare(actual, expected), 1e-2) << where;
      const RunCounters& counters = runner->counters();
      EXPECT_EQ(counters.fusions, counters.steps * config.sync_layers.size()) << where;
      EXPECT_EQ(counters.preemptions > 0, way.few_pages) << where;
      if (cuda_kind() != CudaKind::emulated) continue;
      const std::uint64_t replays = graph_launches_for_tests() - replays_before;
      EXPECT_EQ(replays > counters.steps / 4, way.graphs)
          << where << ": " << replays << " of " << counters.steps;
    }
  }
};

TEST_F(CudaSteps, SmallModelByEveryWay) {
  const ModelConfig config = parse_config(kSmallBytesModel, "the test's configuration");
  const TokenizerChoice tokenizer = make_tokenizer({.kind = "bytes", .model = {}, .file = {}}, config);
  const std::vector<Request> requests = mixed_requests(12, 14, 60, 256);
  const Tokenizer* bytes = tokenizer.tokenizer.get();
  const std::vector<Way> with_all{{false, 1, false}, {true, 0, false}, {true, 1, false}};
  compare_ways(config, nullptr, bytes, requests, 4, {false, 0, false}, with_all);
  const std::vector<Way> with_few{{true, 1, true}};
  compare_ways(config, nullptr, bytes, requests, 4, {false, 1, true}, with_few);
}

// Edited rows beside others, alternatives, and rules that have steps in flight taken first.
TEST_F(CudaSteps, SamplingRulesByEveryWay) {
  const ModelConfig config = parse_config(kSmallBytesModel, "the test's configuration");
  const TokenizerChoice tokenizer = make_tokenizer({.kind = "bytes", .model = {}, .file = {}}, config);
  std::vector<Request> requests = mixed_requests(12, 14, 25, 256);
  add_rules(requests);
  const std::vector<Way> ways{{true, 1, false}};
  compare_ways(config, nullptr, tokenizer.tokenizer.get(), requests, 4, {false, 0, false}, ways);
}

// Two angles a position, biases, and norms of both rules are in the recorded steps.
TEST_F(CudaSteps, ConfigKeysByEveryWay) {
  auto json = nlohmann::json::parse(kSmallBytesModel);
  json.update(nlohmann::json::parse(R"({"attention_bias": ["q", "v", "o"], "rope_theta_local": 20.0,
    "rope_scaling": {"type": "linear", "factor": 2.0}, "pre_scale_norms": ["pre"], "embedding_scale": 4.0,
    "ffn_activation": "gelu_tanh", "attention_scale": 0.5})"));
  const ModelConfig config = parse_config(json.dump(), "the test's configuration");
  const TokenizerChoice tokenizer = make_tokenizer({.kind = "bytes", .model = {}, .file = {}}, config);
  const std::vector<Way> ways{{true, 1, false}};
  compare_ways(config, nullptr, tokenizer.tokenizer.get(), mixed_requests(6, 14, 40, 256), 4,
               {false, 0, false}, ways);
}

// Pages that are read by several sequences, some in the step that writes them.
TEST_F(CudaSteps, PromptsThatBeginAlike) {
  const ModelConfig config = parse_config(kSmallBytesModel, "the test's configuration");
  std::vector<Request> texts = mixed_requests(12, 14, 1, 256);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    auto& tokens = texts[i].tokens;
    tokens.push_back(9);
    texts[i].max_tokens = 0;
    texts[i].score_from = 40;
    for (std::int32_t p = 0; p < 40; ++p)
      tokens.insert(tokens.begin(), (p * 13 + static_cast<std::int32_t>(i % 2)) % 200);
  }
  EngineOptions options{.max_batch = 5, .max_rows = 64, .kv_pages = 12};
  const auto runner = make(config, nullptr, nullptr, true, options);
  const auto shared = runner->run(Task::score, texts);
  EXPECT_GT(runner->counters().reused_tokens, 8u * 32);
  options.prefix_cache = false;
  EXPECT_LT(compare(shared, make(config, nullptr, nullptr, true, options)->run(Task::score, texts)), 1e-2);
}

// A model whose embedding has a NaN in the row of one token.
void write_poisoned(const std::string& path, const ModelConfig& config, std::int64_t token) {
  ModelWriter writer(path, config, false);
  for (const TensorSpec& spec : all_tensors(config)) {
    std::vector<std::byte> content = random_tensor(config, spec, 7, DType::bfloat16);
    constexpr std::uint16_t kNan = 0x7FC0;
    if (spec.role == WeightRole::embedding)
      std::memcpy(&content[static_cast<std::size_t>(token * config.hidden_size + 3) * 2], &kNan, sizeof kNan);
    writer.write(spec, DType::bfloat16, [&](std::int64_t first, std::span<std::byte> bytes) {
      std::memcpy(bytes.data(), &content[static_cast<std::size_t>(first) * 2], bytes.size());
    });
  }
  writer.commit();
}

// What a request ends with that is fed the token, in its prompt or once it has generated it; -1: nothing.
std::int64_t failure_by(std::int32_t token, const Request& request, const Completion& sound) {
  if (std::ranges::count(request.tokens, token) > 0) return 0;
  const auto at = std::ranges::find(sound.tokens, token) - sound.tokens.begin();
  return at + 1 < std::ssize(sound.tokens) ? at + 1 : -1;
}

// Its requests fail, with steps recorded and ahead too, and pages with NaNs are used again: no other
// request changes.
TEST_F(CudaSteps, NonFiniteLogitsHarmNoNeighbour) {
  constexpr std::int32_t kToken = 31;
  const ModelConfig config = parse_config(kSmallBytesModel, "the test's configuration");
  const TempFolder folder;
  write_poisoned(folder / "poisoned.h5", config, kToken);
  const ModelFile file(folder / "poisoned.h5");
  std::vector<Request> requests = mixed_requests(14, 14, 40, 256);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i].stop.clear();
    if (i % 5 == 1) requests[i].tokens[i % requests[i].tokens.size()] = kToken;
  }
  std::vector<Request> texts = requests;
  for (Request& text : texts) text.max_tokens = 0, text.tokens.push_back(9);
  const EngineOptions plain{.max_batch = 5, .max_rows = 16, .kv_pages = 64, .steps_ahead = 0};
  const auto sound = make(config, nullptr, nullptr, false, plain)->run(Task::generate, requests);
  for (const Way& way : {Way{false, 0, false}, {true, 1, false}}) {
    EngineOptions options = plain;
    options.steps_ahead = way.steps_ahead;
    const auto runner = make(config, &file, nullptr, way.graphs, options);
    std::size_t failed = 0;
    const auto actual = runner->run(Task::generate, requests);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(actual[i].not_finite_at, failure_by(kToken, requests[i], sound[i])) << "request " << i;
      failed += actual[i].failed() ? 1 : 0;
      if (actual[i].failed()) continue;
      EXPECT_EQ(actual[i].tokens, sound[i].tokens) << "request " << i;
    }
    EXPECT_GE(failed, 3u);
    EXPECT_LT(failed, requests.size());
    const auto scored = runner->run(Task::score, texts);
    for (std::size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ(scored[i].failed(), std::ranges::count(texts[i].tokens, kToken) > 0) << "request " << i;
      for (const float logprob : scored[i].logprobs) EXPECT_TRUE(std::isfinite(logprob));
    }
  }
}

TEST_F(CudaSteps, DemoModelByEveryWay) {
  const ModelFile file(demo_model());
  const TokenizerChoice tokenizer = make_tokenizer(file.tokenizer(), file.config());
  std::vector<Request> requests;
  for (const char* text : {"Add 36 and 72.\n", "Add 1 and 2.\n", "Is 3 odd?\n"}) {
    Request request;
    request.tokens = tokenizer.tokenizer->encode(text);
    request.max_tokens = 11 - 3 * std::ssize(requests);
    request.ignore_eos = true;
    request.seed = 5;
    if (requests.size() == 1) request.temperature = 0.7f;
    if (requests.size() == 2) request.stop = {"."};
    requests.push_back(request);
  }
  const std::vector<Way> ways{{true, 1, true}};
  compare_ways(file.config(), &file, tokenizer.tokenizer.get(), requests, 3, {false, 0, false}, ways);
}

}  // namespace
}  // namespace ptrt::testing
