// The model's configuration: what is accepted is written and read again as the same, and no size overflows.
#include <algorithm>
#include <array>

#include "driver/json_mutator.h"
#include "driver/target.h"
#include "kernels/base/error.h"
#include "model_io/config/model_config.h"
#include "model_io/config/tensor_names.h"

namespace ptrt::fuzz {
namespace {

constexpr std::array kKeys = std::to_array<std::string_view>({
    "name",
    "tracks",
    "layers",
    "sync_layers",
    "fusion",
    "op",
    "dispatch_norm",
    "combine_norm",
    "hidden_size",
    "heads",
    "kv_heads",
    "head_dim",
    "ffn_size",
    "vocab_size",
    "max_context",
    "norm_eps",
    "norm_placement",
    "qk_norm",
    "attention_pattern",
    "attention_window",
    "rope_theta",
    "ffn_pattern",
    "moe",
    "experts",
    "top_k",
    "router_logit_cap",
    "tie_embeddings",
    "bos_token_id",
    "eos_token_ids",
    "attention_bias",
    "qk_norm_order",
    "pre_scale_norms",
    "rope_scaling",
    "type",
    "factor",
    "original_max_position",
    "low_freq_factor",
    "beta_fast",
    "attention_factor",
    "rope_theta_local",
    "attention_scale",
    "ffn_activation",
    "embedding_scale",
    "normalize_top_k",
});
constexpr std::array kValues = std::to_array<std::string_view>({
    "\"mean\"",
    "\"sum\"",
    "\"delta_sum\"",
    "[\"pre\"]",
    "[\"output\", \"post\"]",
    "[\"pre\", \"output\", \"post\"]",
    "[\"global_rope\"]",
    "[\"local_rope\", \"global_nope\"]",
    "[\"local_nope\"]",
    "[\"moe\"]",
    "[\"dense\", \"moe\"]",
    R"({"experts":4,"top_k":2,"ffn_size":64,"router_logit_cap":null})",
    R"({"experts":8,"top_k":8,"ffn_size":32,"router_logit_cap":30.0})",
    "[\"q\", \"k\", \"v\"]",
    "[\"dispatch\", \"combine\"]",
    "\"after_rope\"",
    "\"gelu_tanh\"",
    R"({"type":"linear","factor":8.0})",
    R"({"type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4,"original_max_position":8192})",
    R"({"type":"yarn","factor":4,"original_max_position":64,"beta_fast":32,"beta_slow":1,"attention_factor":null})",
    "[1]",
    "[2, 4]",
    "[1, 2, 3, 4]",
    "[257]",
});

// Every tensor's number of elements and bytes fits 64 bits, also as a sum over the model.
void check_sizes(const ModelConfig& config) {
  const auto add = [](std::int64_t& sum, const std::vector<TensorSpec>& tensors, std::int64_t times) {
    for (const TensorSpec& spec : tensors) {
      std::int64_t elements = 1, bytes = 0;
      for (const std::int64_t extent : spec.shape) {
        expect(extent > 0, "{} has an extent of {}", spec.path, extent);
        expect(!__builtin_mul_overflow(elements, extent, &elements), "the size of {} overflows", spec.path);
      }
      expect(elements == spec.elements(), "{}: elements() is {} for {}", spec.path, spec.elements(),
             elements);
      expect(
          !__builtin_mul_overflow(elements, 4 * times, &bytes) && !__builtin_add_overflow(sum, bytes, &sum),
          "the sizes overflow at {}", spec.path);
    }
  };
  std::int64_t sum = 0;
  add(sum, shared_tensors(config), 1);
  add(sum, block_tensors(config, config.tracks - 1, config.blocks() - 1), config.tracks * config.blocks());
  const auto kinds =
      std::min<std::int64_t>(static_cast<std::int64_t>(config.ffn_pattern.size()), config.layers);
  for (std::int64_t layer = 0; layer < std::min<std::int64_t>(kinds, 8); ++layer)
    add(sum, layer_tensors(config, config.tracks - 1, layer), config.tracks * (config.layers / kinds + 1));
}

}  // namespace

void run_input(std::string_view input) {
  ModelConfig config;
  try {
    config = parse_config(std::string(input), "c.json");
  } catch (const Error& error) {
    expect(error.code() == ExitCode::bad_input, "exit status {}: {}", static_cast<int>(error.code()),
           error.what());
    expect(std::string_view(error.what()).starts_with("c.json"), "the message names no file: {}",
           error.what());
    return;
  }
  const std::string written = to_json(config);
  expect(to_json(parse_config(written, "again")) == written, "is not read as it was written: {}", written);
  check_sizes(config);
}

std::string mutate_input(std::string input, Random& random) {
  return mutate_json(std::move(input), {kKeys, kValues}, random);
}

}  // namespace ptrt::fuzz
