#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>

#include "model_io/config/model_config.h"
#include "model_io/config/object_reader.h"
#include "model_io/config/strict_json.h"

namespace ptrt {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::array<Name<FusionOp>, 3> kFusionOps{{
    {"mean", FusionOp::mean},
    {"sum", FusionOp::sum},
    {"delta_sum", FusionOp::delta_sum},
}};
constexpr std::array<Name<AttentionKind>, 4> kAttentionKinds{{
    {"global_rope", AttentionKind::global_rope},
    {"global_nope", AttentionKind::global_nope},
    {"local_rope", AttentionKind::local_rope},
    {"local_nope", AttentionKind::local_nope},
}};
constexpr std::array<Name<FfnKind>, 2> kFfnKinds{{
    {"dense", FfnKind::dense},
    {"moe", FfnKind::moe},
}};
constexpr std::array<Name<bool NormPlacement::*>, 3> kNormPlacements{{
    {"pre", &NormPlacement::pre},
    {"output", &NormPlacement::output},
    {"post", &NormPlacement::post},
}};
constexpr std::array<Name<bool PreScaleNorms::*>, 5> kPreScaleNorms{{
    {"pre", &PreScaleNorms::pre},
    {"output", &PreScaleNorms::output},
    {"post", &PreScaleNorms::post},
    {"dispatch", &PreScaleNorms::dispatch},
    {"combine", &PreScaleNorms::combine},
}};
constexpr std::array<Name<bool AttentionBias::*>, 4> kAttentionBiases{{
    {"q", &AttentionBias::q},
    {"k", &AttentionBias::k},
    {"v", &AttentionBias::v},
    {"o", &AttentionBias::o},
}};
constexpr std::array<Name<QkNormOrder>, 2> kQkNormOrders{{
    {"before_rope", QkNormOrder::before_rope},
    {"after_rope", QkNormOrder::after_rope},
}};
constexpr std::array<Name<RopeScalingType>, 3> kRopeScalingTypes{{
    {"linear", RopeScalingType::linear},
    {"llama3", RopeScalingType::llama3},
    {"yarn", RopeScalingType::yarn},
}};
constexpr std::array<Name<FfnActivation>, 2> kFfnActivations{{
    {"silu", FfnActivation::silu},
    {"gelu_tanh", FfnActivation::gelu_tanh},
}};

// clang-format off
constexpr std::array<std::string_view, 31> kConfigKeys{
    "name", "tracks", "layers", "sync_layers", "fusion",
    "hidden_size", "heads", "kv_heads", "head_dim", "ffn_size",
    "vocab_size", "max_context", "norm_eps", "norm_placement", "qk_norm",
    "attention_pattern", "attention_window", "rope_theta",
    "ffn_pattern", "moe", "tie_embeddings", "bos_token_id", "eos_token_ids",
    "attention_bias", "qk_norm_order", "pre_scale_norms", "rope_scaling", "rope_theta_local",
    "attention_scale", "ffn_activation", "embedding_scale"};
// clang-format on
constexpr std::array<std::string_view, 3> kFusionKeys{"op", "dispatch_norm", "combine_norm"};
constexpr std::array<std::string_view, 5> kMoeKeys{"experts", "top_k", "ffn_size", "router_logit_cap",
                                                   "normalize_top_k"};
// Of any type first: a key that no type has is an error before the type is looked at.
constexpr std::array<std::string_view, 8> kRopeScalingKeys{
    "type",      "factor",          "attention_factor", "beta_fast",
    "beta_slow", "low_freq_factor", "high_freq_factor", "original_max_position"};
constexpr std::array<std::string_view, 2> kLinearKeys{"type", "factor"};
constexpr std::array<std::string_view, 5> kLlama3Keys{"type", "factor", "low_freq_factor", "high_freq_factor",
                                                      "original_max_position"};
constexpr std::array<std::string_view, 6> kYarnKeys{"type",      "factor",    "original_max_position",
                                                    "beta_fast", "beta_slow", "attention_factor"};

std::span<const std::string_view> keys_of(RopeScalingType type) {
  if (type == RopeScalingType::linear) return kLinearKeys;
  if (type == RopeScalingType::llama3) return kLlama3Keys;
  return kYarnKeys;
}

FusionConfig parse_fusion(const json& object, const std::string& where) {
  const ObjectReader reader(object, where, "fusion.", kFusionKeys);
  return {reader.choice("op", kFusionOps), reader.boolean("dispatch_norm"), reader.boolean("combine_norm")};
}

MoeConfig parse_moe(const json& object, const std::string& where) {
  const ObjectReader reader(object, where, "moe.", kMoeKeys);
  MoeConfig moe;
  moe.experts = reader.integer("experts");
  moe.top_k = reader.integer("top_k");
  moe.ffn_size = reader.integer("ffn_size");
  if (reader.has_value("router_logit_cap")) moe.router_logit_cap = reader.number("router_logit_cap");
  if (reader.has_value("normalize_top_k")) moe.normalize_top_k = reader.boolean("normalize_top_k");
  return moe;
}

RopeScaling parse_rope_scaling(const json& object, const std::string& where) {
  const ObjectReader any(object, where, "rope_scaling.", kRopeScalingKeys);
  RopeScaling scaling;
  scaling.type = any.choice("type", kRopeScalingTypes);
  const ObjectReader reader(object, where, "rope_scaling.", keys_of(scaling.type));
  scaling.factor = reader.number("factor");
  if (scaling.type == RopeScalingType::linear) return scaling;
  scaling.original_max_position = reader.integer("original_max_position");
  if (scaling.type == RopeScalingType::llama3) {
    scaling.low_freq_factor = reader.number("low_freq_factor");
    scaling.high_freq_factor = reader.number("high_freq_factor");
    return scaling;
  }
  scaling.beta_fast = reader.number("beta_fast");
  scaling.beta_slow = reader.number("beta_slow");
  if (reader.has_value("attention_factor")) scaling.attention_factor = reader.number("attention_factor");
  return scaling;
}

// The keys that a file may lack.
void parse_optional(const ObjectReader& reader, const std::string& where, ModelConfig& config) {
  if (reader.has_value("attention_bias"))
    config.attention_bias = reader.flags("attention_bias", kAttentionBiases);
  if (reader.has_value("qk_norm_order")) config.qk_norm_order = reader.choice("qk_norm_order", kQkNormOrders);
  if (reader.has_value("pre_scale_norms"))
    config.pre_scale_norms = reader.flags("pre_scale_norms", kPreScaleNorms);
  if (reader.has_value("rope_scaling"))
    config.rope_scaling = parse_rope_scaling(reader.object("rope_scaling"), where);
  if (reader.has_value("rope_theta_local")) config.rope_theta_local = reader.number("rope_theta_local");
  if (reader.has_value("attention_scale")) config.attention_scale = reader.number("attention_scale");
  if (reader.has_value("ffn_activation"))
    config.ffn_activation = reader.choice("ffn_activation", kFfnActivations);
  if (reader.has_value("embedding_scale")) config.embedding_scale = reader.number("embedding_scale");
}

template <typename Set, std::size_t N>
ordered_json flags_of(const Set& set, const std::array<Name<bool Set::*>, N>& names) {
  ordered_json result = ordered_json::array();
  for (const auto& name : names)
    if (set.*name.value) result.push_back(name.text);
  return result;
}

ordered_json rope_scaling_json(const RopeScaling& scaling) {
  ordered_json result{{"type", name_of(kRopeScalingTypes, scaling.type)}, {"factor", scaling.factor}};
  if (scaling.type == RopeScalingType::llama3) {
    result["low_freq_factor"] = scaling.low_freq_factor;
    result["high_freq_factor"] = scaling.high_freq_factor;
  }
  if (scaling.type != RopeScalingType::linear)
    result["original_max_position"] = scaling.original_max_position;
  if (scaling.type == RopeScalingType::yarn) {
    result["beta_fast"] = scaling.beta_fast;
    result["beta_slow"] = scaling.beta_slow;
    result["attention_factor"] = scaling.attention_factor ? ordered_json(*scaling.attention_factor) : nullptr;
  }
  return result;
}

// Only what is not the default, so that a config without these keys has the text that it always had.
void write_optional(const ModelConfig& config, ordered_json& result) {
  if (const ordered_json list = flags_of(config.attention_bias, kAttentionBiases); !list.empty())
    result["attention_bias"] = list;
  if (config.qk_norm_order != QkNormOrder::before_rope)
    result["qk_norm_order"] = name_of(kQkNormOrders, config.qk_norm_order);
  if (const ordered_json list = flags_of(config.pre_scale_norms, kPreScaleNorms); !list.empty())
    result["pre_scale_norms"] = list;
  if (config.rope_scaling) result["rope_scaling"] = rope_scaling_json(*config.rope_scaling);
  if (config.rope_theta_local) result["rope_theta_local"] = *config.rope_theta_local;
  if (config.attention_scale) result["attention_scale"] = *config.attention_scale;
  if (config.ffn_activation != FfnActivation::silu)
    result["ffn_activation"] = name_of(kFfnActivations, config.ffn_activation);
  if (config.embedding_scale != 1) result["embedding_scale"] = config.embedding_scale;
}

template <typename Enum, std::size_t N>
ordered_json names_of(const std::vector<Enum>& values, const std::array<Name<Enum>, N>& names) {
  ordered_json result = ordered_json::array();
  for (const Enum value : values) result.push_back(name_of(names, value));
  return result;
}

}  // namespace

ModelConfig parse_config(const std::string& json_text, const std::string& where) {
  const json parsed = parse_json_object(json_text, where + ": the config");
  const ObjectReader reader(parsed, where, "", kConfigKeys);
  ModelConfig config;
  if (reader.has_value("name")) config.name = reader.string("name");
  config.tracks = reader.integer("tracks");
  config.layers = reader.integer("layers");
  config.sync_layers = reader.integers("sync_layers");
  config.fusion = parse_fusion(reader.object("fusion"), where);
  config.hidden_size = reader.integer("hidden_size");
  config.heads = reader.integer("heads");
  config.kv_heads = reader.integer("kv_heads");
  config.head_dim = reader.integer("head_dim");
  config.ffn_size = reader.integer("ffn_size");
  config.vocab_size = reader.integer("vocab_size");
  config.max_context = reader.integer("max_context");
  config.norm_eps = reader.number("norm_eps");
  config.norm_placement = reader.flags("norm_placement", kNormPlacements);
  config.qk_norm = reader.boolean("qk_norm");
  config.attention_pattern = reader.choices("attention_pattern", kAttentionKinds);
  if (reader.has_value("attention_window")) config.attention_window = reader.integer("attention_window");
  config.rope_theta = reader.number("rope_theta");
  config.ffn_pattern = reader.choices("ffn_pattern", kFfnKinds);
  if (reader.has_value("moe")) config.moe = parse_moe(reader.object("moe"), where);
  config.tie_embeddings = reader.boolean("tie_embeddings");
  if (reader.has_value("bos_token_id")) config.bos_token_id = reader.integer("bos_token_id");
  config.eos_token_ids = reader.integers("eos_token_ids");
  parse_optional(reader, where, config);
  validate(config, where);
  if (config.attention_scale == 1 / std::sqrt(static_cast<double>(config.head_dim)))
    config.attention_scale.reset();
  return config;
}

std::string to_json(const ModelConfig& config) {
  ordered_json moe;  // null
  if (config.moe) {
    moe = {
        {"experts", config.moe->experts}, {"top_k", config.moe->top_k}, {"ffn_size", config.moe->ffn_size}};
    moe["router_logit_cap"] =
        config.moe->router_logit_cap ? ordered_json(*config.moe->router_logit_cap) : nullptr;
    if (!config.moe->normalize_top_k) moe["normalize_top_k"] = false;
  }
  ordered_json result;
  result["name"] = config.name;
  result["tracks"] = config.tracks;
  result["layers"] = config.layers;
  result["sync_layers"] = config.sync_layers;
  result["fusion"] = {{"op", name_of(kFusionOps, config.fusion.op)},
                      {"dispatch_norm", config.fusion.dispatch_norm},
                      {"combine_norm", config.fusion.combine_norm}};
  result["hidden_size"] = config.hidden_size;
  result["heads"] = config.heads;
  result["kv_heads"] = config.kv_heads;
  result["head_dim"] = config.head_dim;
  result["ffn_size"] = config.ffn_size;
  result["vocab_size"] = config.vocab_size;
  result["max_context"] = config.max_context;
  result["norm_eps"] = config.norm_eps;
  result["norm_placement"] = flags_of(config.norm_placement, kNormPlacements);
  result["qk_norm"] = config.qk_norm;
  result["attention_pattern"] = names_of(config.attention_pattern, kAttentionKinds);
  result["attention_window"] = config.attention_window;
  result["rope_theta"] = config.rope_theta;
  result["ffn_pattern"] = names_of(config.ffn_pattern, kFfnKinds);
  result["moe"] = moe;
  result["tie_embeddings"] = config.tie_embeddings;
  result["bos_token_id"] = config.bos_token_id ? ordered_json(*config.bos_token_id) : nullptr;
  result["eos_token_ids"] = config.eos_token_ids;
  write_optional(config, result);
  return result.dump();
}

}  // namespace ptrt
