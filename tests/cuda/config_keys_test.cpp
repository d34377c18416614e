// Models with the optional keys of a configuration: the CUDA backend against the CPU backend in float32.
#include <nlohmann/json.hpp>

#include "cuda/model_distance.h"
#include "kernels/make_cpu_backend.h"
#include "model_io/file/model_file.h"
#include "model_io/model_fixture.h"
#include "ops/fixtures/cuda_provider.h"
#include "ops/fixtures/test_tensors.h"
#include "runtime/engine_fixture.h"

namespace ptrt::testing {
namespace {

// Every kind of layer, norm and attention; the texts are longer than the window.
const char* const kPlain = R"({
  "name": "plain", "tracks": 2, "layers": 3, "sync_layers": [1, 3],
  "fusion": {"op": "delta_sum", "dispatch_norm": true, "combine_norm": true},
  "hidden_size": 40, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn_size": 36,
  "vocab_size": 91, "max_context": 64, "norm_eps": 1e-2, "norm_placement": ["pre", "output", "post"],
  "qk_norm": true, "attention_pattern": ["global_rope", "local_nope", "local_rope"], "attention_window": 7,
  "rope_theta": 50.0, "ffn_pattern": ["dense", "moe"],
  "moe": {"experts": 4, "top_k": 2, "ffn_size": 16, "router_logit_cap": 20.0},
  "tie_embeddings": true, "bos_token_id": null, "eos_token_ids": []})";

struct Key {
  const char *name, *changes;
};
const Key kKeys[] = {
    {"attention_bias", R"({"attention_bias": ["q", "k", "v", "o"]})"},
    {"qk_norm_order", R"({"qk_norm_order": "after_rope"})"},
    {"pre_scale_norms", R"({"pre_scale_norms": ["pre", "output", "post", "dispatch", "combine"]})"},
    {"pre_scale_norms of some", R"({"pre_scale_norms": ["pre", "combine"]})"},
    {"linear", R"({"rope_scaling": {"type": "linear", "factor": 4.0}})"},
    {"llama3", R"({"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                   "high_freq_factor": 4.0, "original_max_position": 16}})"},
    {"yarn",
     R"({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position": 16, "beta_fast": 2.0,
                 "beta_slow": 0.25, "attention_factor": 1.5}, "qk_norm": false})"},
    {"rope_theta_local", R"({"rope_theta_local": 3.0})"},
    {"attention_scale", R"({"attention_scale": 0.5})"},
    {"ffn_activation", R"({"ffn_activation": "gelu_tanh"})"},
    {"embedding_scale", R"({"embedding_scale": 3.0})"},
    {"normalize_top_k", R"({"moe": {"experts": 4, "top_k": 2, "ffn_size": 16, "router_logit_cap": 20.0,
                            "normalize_top_k": false}})"},
};

ModelConfig changed(const char* changes) {
  auto json = nlohmann::json::parse(kPlain);
  json.update(nlohmann::json::parse(changes));
  return parse_config(json.dump(), "the test's configuration");
}

// All keys at once.
ModelConfig with_every_key() {
  auto json = nlohmann::json::parse(kPlain);
  for (const Key& key : kKeys) json.update(nlohmann::json::parse(key.changes));
  json["qk_norm"] = true;
  return parse_config(json.dump(), "the test's configuration");
}

// A random model; unlike those of random_shard(), its norms have weights that differ.
void write_model(const std::string& path, const ModelConfig& config, DType dtype) {
  ModelWriter writer(path, config, false);
  for (const TensorSpec& spec : all_tensors(config)) {
    if (spec.role != WeightRole::vector || spec.is_bias()) {
      write_tensor(writer, config, spec, 7, dtype);
      continue;
    }
    Random random(static_cast<unsigned>(std::hash<std::string>{}(spec.path)));
    std::vector<float> weights(static_cast<std::size_t>(spec.elements()));
    for (float& weight : weights) weight = random.uniform(0.3f, 1.7f);
    writer.write(spec, DType::float32, [&](std::int64_t first, std::span<std::byte> bytes) {
      std::memcpy(bytes.data(), &weights[static_cast<std::size_t>(first)], bytes.size());
    });
  }
  writer.commit();
}

std::vector<Completion> scores(const ModelConfig& config, DType dtype, std::unique_ptr<Backend> backend,
                               DType kv_dtype) {
  const TempFolder folder;
  write_model(folder / "model.h5", config, dtype);
  const ModelFile file(folder / "model.h5");
  TrackShard shard = load_shard(file, 0, config.tracks, *backend);
  const EngineOptions options{.max_batch = 4, .max_rows = 20, .kv_pages = 64, .kv_dtype = kv_dtype};
  EngineRunner runner(config, std::move(backend), std::move(shard), nullptr, options);
  Random random(3);
  std::vector<Request> texts(2);
  for (std::size_t i = 0; i < texts.size(); ++i)
    for (int n = 0; n < 12 + 11 * static_cast<int>(i); ++n) texts[i].tokens.push_back(random.below(91));
  return runner.run(Task::score, texts);
}

class CudaConfigKeys : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const CudaForTests cuda = make_cuda_for_tests(); cuda.backend == nullptr)
      GTEST_SKIP() << cuda.missing;
  }
  // `dtype`: of activations, and of the model's matrices.
  static std::vector<Completion> on_cuda(const ModelConfig& config, DType dtype) {
    return scores(config, dtype, make_cuda_for_tests({.activation_dtype = dtype}).backend, dtype);
  }
  static std::vector<Completion> on_cpu(const ModelConfig& config, DType dtype) {
    return scores(config, dtype, make_cpu_backend({.threads = 1}), DType::float32);
  }
};

TEST_F(CudaConfigKeys, AllAtOnce) {
  const ModelConfig config = with_every_key();
  for (const DType dtype : {DType::bfloat16, DType::float16})
    EXPECT_LT(compare(on_cuda(config, dtype), on_cpu(config, dtype)), allowed_distance(dtype))
        << to_string(dtype);
}

// In the type that tells a key from its default best: a key alone changes the result by more than the type
// may.
TEST_F(CudaConfigKeys, EachAlone) {
  constexpr DType kType = DType::float16;
  for (const Key& key : kKeys) {
    const ModelConfig config = changed(key.changes);
    const std::vector<Completion> expected = on_cpu(config, kType);
    EXPECT_LT(compare(on_cuda(config, kType), expected), allowed_distance(kType)) << key.name;
    const ModelConfig plain = changed(config.qk_norm ? "{}" : R"({"qk_norm": false})");
    EXPECT_GT(compare(on_cpu(plain, kType), expected), 5 * allowed_distance(kType)) << key.name;
  }
}

}  // namespace
}  // namespace ptrt::testing
