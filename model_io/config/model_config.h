// The model's configuration (docs/SPEC.md, The file) as a struct. All sizes are per track.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/jobs.h"

namespace ptrt {

enum class FusionOp : std::uint8_t { mean, sum, delta_sum };

enum class AttentionKind : std::uint8_t { global_rope, global_nope, local_rope, local_nope };
constexpr bool is_local(AttentionKind kind) {
  return kind == AttentionKind::local_rope || kind == AttentionKind::local_nope;
}
constexpr bool has_rope(AttentionKind kind) {
  return kind == AttentionKind::global_rope || kind == AttentionKind::local_rope;
}

enum class FfnKind : std::uint8_t { dense, moe };

struct FusionConfig {
  FusionOp op = FusionOp::mean;
  bool dispatch_norm = false;
  bool combine_norm = false;
};

struct NormPlacement {
  bool pre = true, output = false, post = false;
};

// The norms that multiply by their weights before the statistics (NormRule::pre_scale).
struct PreScaleNorms {
  bool pre = false, output = false, post = false, dispatch = false, combine = false;
};

// The projections that have a bias.
struct AttentionBias {
  bool q = false, k = false, v = false, o = false;
};

enum class QkNormOrder : std::uint8_t { before_rope, after_rope };

enum class RopeScalingType : std::uint8_t { linear, llama3, yarn };

struct RopeScaling {
  RopeScalingType type = RopeScalingType::linear;
  double factor = 1;
  std::int64_t original_max_position = 0;            // llama3, yarn
  double low_freq_factor = 0, high_freq_factor = 0;  // llama3
  double beta_fast = 0, beta_slow = 0;               // yarn
  std::optional<double> attention_factor;            // yarn; none: from the factor
};

struct MoeConfig {
  std::int64_t experts = 0, top_k = 0, ffn_size = 0;
  std::optional<double> router_logit_cap;
  bool normalize_top_k = true;
};

struct ModelConfig {
  std::string name;
  std::int64_t tracks = 0, layers = 0;
  std::vector<std::int64_t> sync_layers;  // 1-based, increasing, the last is `layers`
  FusionConfig fusion;
  std::int64_t hidden_size = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn_size = 0;
  std::int64_t vocab_size = 0, max_context = 0;
  double norm_eps = 1e-5;
  NormPlacement norm_placement;
  PreScaleNorms pre_scale_norms;
  bool qk_norm = false;
  QkNormOrder qk_norm_order = QkNormOrder::before_rope;
  AttentionBias attention_bias;
  std::optional<double> attention_scale;  // none: 1/sqrt(head_dim)
  std::vector<AttentionKind> attention_pattern{AttentionKind::global_rope};
  std::int64_t attention_window = 0;
  double rope_theta = 10000.0;
  std::optional<RopeScaling> rope_scaling;  // of the layers that take rope_theta
  std::optional<double> rope_theta_local;   // of local_rope layers; none: they take rope_theta
  std::vector<FfnKind> ffn_pattern{FfnKind::dense};
  std::optional<MoeConfig> moe;
  FfnActivation ffn_activation = FfnActivation::silu;
  bool tie_embeddings = true;
  double embedding_scale = 1;  // at the input, not on a tied head
  std::optional<std::int64_t> bos_token_id;
  std::vector<std::int64_t> eos_token_ids;

  AttentionKind attention_kind(std::int64_t layer) const {
    return attention_pattern[static_cast<std::size_t>(layer) % attention_pattern.size()];
  }
  FfnKind ffn_kind(std::int64_t layer) const {
    return ffn_pattern[static_cast<std::size_t>(layer) % ffn_pattern.size()];
  }
  // Whether some layers rotate by rope_theta_local, not by rope_theta.
  bool has_local_rope_theta() const {
    return rope_theta_local && std::ranges::count(attention_pattern, AttentionKind::local_rope) > 0;
  }
  std::int64_t blocks() const { return static_cast<std::int64_t>(sync_layers.size()); }
};

// Parses and validates. `where`, e.g. a file, begins every message. Throws bad_input that names the
// key, what was expected and what was found: unknown or missing keys, wrong types, sizes that do
// not divide or are absurd.
ModelConfig parse_config(const std::string& json_text, const std::string& where);
// One line, in the order of docs/SPEC.md; optional keys only where they say other than the default.
std::string to_json(const ModelConfig& config);

// Rules beyond single values (divisibility, sync layers, patterns that need other keys). Called by
// parse_config.
void validate(const ModelConfig& config, const std::string& where);

}  // namespace ptrt
