// Models with 8-bit matrices: the CUDA backend against the CPU backend, whose products then take float32.
#include <functional>
#include <nlohmann/json.hpp>

#include "cuda/model_distance.h"
#include "kernels/make_cpu_backend.h"
#include "model_io/file/model_file.h"
#include "model_io/model_fixture.h"
#include "ops/fixtures/cuda_provider.h"
#include "ops/fixtures/test_tensors.h"
#include "runtime/engine_fixture.h"
#include "runtime/serving/memory_plan.h"

namespace ptrt::testing {
namespace {

// Widths that groups of 32 divide, and others; biases; steps of up to 80 rows, more than pass by the kernel for few.
const char* const kDense = R"({
  "name": "dense", "tracks": 2, "layers": 2, "sync_layers": [1, 2],
  "fusion": {"op": "mean", "dispatch_norm": false, "combine_norm": false},
  "hidden_size": 72, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn_size": 104,
  "vocab_size": 91, "max_context": 128, "norm_eps": 1e-5, "norm_placement": ["pre"],
  "qk_norm": false, "attention_bias": ["q", "k", "v", "o"], "attention_pattern": ["global_rope"],
  "attention_window": 0, "rope_theta": 500.0, "ffn_pattern": ["dense"], "moe": null,
  "tie_embeddings": false, "bos_token_id": null, "eos_token_ids": []})";
constexpr std::int64_t kRows = 80, kPages = 64;

ModelConfig dense(const char* changes = "{}") {
  auto json = nlohmann::json::parse(kDense);
  json.update(nlohmann::json::parse(changes));
  return parse_config(json.dump(), "the test's configuration");
}

// The type of a matrix in a file.
using TypeOf = std::function<DType(const TensorSpec&)>;

// Converts the rows of a matrix, stored in bfloat16 in `content`, as the writer asks for them.
template <class Rows, class ElementsOf>
ModelWriter::FillScaled converted(const TensorSpec& spec, std::span<const std::byte> content, Rows& rows,
                                  ElementsOf elements_of) {
  const auto row_bytes = static_cast<std::size_t>(spec.shape.back()) * 2;
  return [=, &rows](std::int64_t first, std::int64_t count) {
    rows.quantize(spec.weight(DType::bfloat16), first,
                  content.subspan(static_cast<std::size_t>(first) * row_bytes,
                                  static_cast<std::size_t>(count) * row_bytes));
    return ModelWriter::ScaledPiece{std::as_bytes(elements_of(rows)), std::as_bytes(rows.scales())};
  };
}

// A random model; all but matrices are bfloat16.
void write_mixed(const std::string& path, const ModelConfig& config, const TypeOf& type_of) {
  ModelWriter writer(path, config, false);
  Int8Rows int8;
  Float8Rows float8;
  for (const TensorSpec& spec : all_tensors(config)) {
    const DType type = spec.role == WeightRole::matrix ? type_of(spec) : DType::bfloat16;
    if (type == DType::bfloat16) {
      write_tensor(writer, config, spec, 7, DType::bfloat16);
      continue;
    }
    const std::vector<std::byte> content = random_tensor(config, spec, 7, DType::bfloat16);
    const bool is_int8 = type == DType::int8;
    writer.write_scaled(
        spec, type,
        is_int8 ? converted(spec, content, int8, [](const Int8Rows& r) { return r.q(); })
                : converted(spec, content, float8, [](const Float8Rows& r) { return r.codes(); }));
  }
  writer.commit();
}

std::unique_ptr<EngineRunner> runner_of(const ModelFile& file, std::unique_ptr<Backend> backend,
                                        DType kv_dtype, int max_rows = kRows) {
  TrackShard shard = load_shard(file, 0, file.config().tracks, *backend);
  const EngineOptions options{.max_batch = 4, .max_rows = max_rows, .kv_pages = kPages, .kv_dtype = kv_dtype};
  return std::make_unique<EngineRunner>(file.config(), std::move(backend), std::move(shard), nullptr,
                                        options);
}

std::vector<Request> texts() {
  Random random(3);
  std::vector<Request> all(3);
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (int n = 0; n < 20 + 40 * static_cast<int>(i); ++n) all[i].tokens.push_back(random.below(91));
    all[i].logprobs = true;
    all[i].max_tokens = 8;
    all[i].ignore_eos = true;
  }
  return all;
}

// The parameter is the type of activations.
class Cuda8Bit : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    CudaForTests cuda = make_cuda_for_tests({.activation_dtype = GetParam()});
    if (cuda.backend == nullptr) GTEST_SKIP() << cuda.missing;
    cuda_ = std::move(cuda.backend);
  }
  void expect_scores_as_on_the_cpu(const ModelConfig& config, const TypeOf& type_of) {
    write_mixed(folder_ / "model.h5", config, type_of);
    const ModelFile file(folder_ / "model.h5");
    const auto cpu = runner_of(file, make_cpu_backend({.threads = 1}), DType::float32);
    const auto cuda =
        runner_of(file, make_cuda_for_tests({.activation_dtype = GetParam()}).backend, GetParam());
    EXPECT_LT(compare(cuda->run(Task::score, texts()), cpu->run(Task::score, texts())),
              allowed_distance(GetParam()));
  }
  // Where float16 is near enough that the random model chooses no other tokens.
  void expect_answers_as_on_the_cpu(const ModelConfig& config, const TypeOf& type_of) {
    if (GetParam() == DType::bfloat16) return;
    write_mixed(folder_ / "model.h5", config, type_of);
    const ModelFile file(folder_ / "model.h5");
    const auto cpu = runner_of(file, make_cpu_backend({.threads = 1}), DType::float32);
    const auto cuda = runner_of(file, std::move(cuda_), GetParam());
    EXPECT_LT(compare(cuda->run(Task::generate, texts()), cpu->run(Task::generate, texts())),
              allowed_distance(GetParam()));
  }

  const TempFolder folder_;
  std::unique_ptr<Backend> cuda_;
};
INSTANTIATE_TEST_SUITE_P(Every, Cuda8Bit, ::testing::Values(DType::bfloat16, DType::float16),
                         [](const auto& dtype) { return std::string(to_string(dtype.param)); });

TEST_P(Cuda8Bit, Int8ModelAnswersAsOnTheCpu) {
  const auto all = [](const TensorSpec&) { return DType::int8; };
  expect_scores_as_on_the_cpu(dense(), all);
  expect_answers_as_on_the_cpu(dense(), all);
}

TEST_P(Cuda8Bit, Float8ModelAnswersAsOnTheCpu) {
  const auto all = [](const TensorSpec&) { return DType::float8_e4m3; };
  expect_scores_as_on_the_cpu(dense(), all);
  expect_answers_as_on_the_cpu(dense(), all);
}

// Matrices that share an input, or a launch for all tracks, of different types.
TEST_P(Cuda8Bit, MixedModelScoresAsOnTheCpu) {
  expect_scores_as_on_the_cpu(dense(R"({"ffn_activation": "gelu_tanh"})"), [](const TensorSpec& spec) {
    const bool second_track = spec.path.starts_with(track_group(1));
    if (spec.id == TensorId::wo || spec.id == TensorId::w_gate)
      return second_track ? DType::int8 : DType::float8_e4m3;
    if (spec.id == TensorId::wq) return DType::float8_e4m3;
    return spec.id == TensorId::wk || spec.id == TensorId::lm_head ? DType::bfloat16 : DType::int8;
  });
}

// Experts too; a gate that its up differs from; experts of another type than all else.
TEST_P(Cuda8Bit, ModelWithExpertsScoresAsOnTheCpu) {
  const ModelConfig config = dense(R"({"ffn_pattern": ["dense", "moe"],
      "moe": {"experts": 3, "top_k": 2, "ffn_size": 20, "router_logit_cap": 20.0}})");
  const TypeOf kinds[] = {
      [](const TensorSpec&) { return DType::int8; }, [](const TensorSpec&) { return DType::float8_e4m3; },
      [](const TensorSpec& spec) { return spec.id == TensorId::expert_gate ? DType::bfloat16 : DType::int8; },
      [](const TensorSpec& spec) {
        const bool narrow = spec.shape.size() == 2 || spec.path.starts_with(track_group(1));
        return narrow ? DType::int8 : DType::bfloat16;
      }};
  for (const TypeOf& type_of : kinds) expect_scores_as_on_the_cpu(config, type_of);
}

// The plan, made from the file's types alone, covers what is taken.
TEST_P(Cuda8Bit, TakesThePlannedMemory) {
  const ModelConfig config = dense();
  write_mixed(folder_ / "model.h5", config,
              [](const TensorSpec& spec) { return spec.id == TensorId::wk ? DType::bfloat16 : DType::int8; });
  const ModelFile file(folder_ / "model.h5");
  DeviceTypes types{.activations = GetParam()};
  for (const TensorSpec& spec : all_tensors(config)) types.note(spec, file.stat(spec).dtype);
  const DeviceNeeds needs = device_needs(config, make_placement(1, 0, config.tracks), types, 4, kRows);
  Backend& backend = *cuda_;
  const auto start = static_cast<std::int64_t>(*backend.free_bytes());
  const bool records = backend.traits().records_steps;
  const auto runner = runner_of(file, std::move(cuda_), GetParam());
  const std::int64_t taken = start - static_cast<std::int64_t>(*backend.free_bytes());
  const std::int64_t planned = needs.weights + needs.scratch + (kPages + (records ? 1 : 0)) * needs.kv_page;
  const std::int64_t slack = cuda_kind() == CudaKind::emulated ? 64 << 10 : kDeviceReserveBytes;
  EXPECT_LE(std::abs(taken - planned), slack);
  // A byte a weight and a sixteenth for scales, of rows filled up.
  EXPECT_LT(needs.weights,
            device_needs(config, make_placement(1, 0, config.tracks), {}, 4, kRows).weights * 3 / 4);
}

}  // namespace
}  // namespace ptrt::testing
