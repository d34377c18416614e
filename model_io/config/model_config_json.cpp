#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <utility>

#include "kernels/base/error.h"
#include "model_io/config/model_config.h"
#include "model_io/config/strict_json.h"

namespace ptrt {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

template <typename Enum>
struct Name {
  std::string_view text;
  Enum value;
};

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

// clang-format off
constexpr std::array<std::string_view, 23> kConfigKeys{
    "name", "tracks", "layers", "sync_layers", "fusion",
    "hidden_size", "heads", "kv_heads", "head_dim", "ffn_size",
    "vocab_size", "max_context", "norm_eps", "norm_placement", "qk_norm",
    "attention_pattern", "attention_window", "rope_theta",
    "ffn_pattern", "moe", "tie_embeddings", "bos_token_id", "eos_token_ids"};
// clang-format on
constexpr std::array<std::string_view, 3> kFusionKeys{"op", "dispatch_norm", "combine_norm"};
constexpr std::array<std::string_view, 4> kMoeKeys{"experts", "top_k", "ffn_size", "router_logit_cap"};

template <typename Enum, std::size_t N>
std::string_view name_of(const std::array<Name<Enum>, N>& names, Enum value) {
  for (const auto& name : names)
    if (name.value == value) return name.text;
  throw_failure("a configuration holds an enumerator without a name");
}

template <typename Enum, std::size_t N>
std::string list_of(const std::array<Name<Enum>, N>& names) {
  std::string list;
  for (const auto& name : names) list += fmt::format("{}\"{}\"", list.empty() ? "" : ", ", name.text);
  return list;
}

// One JSON object of the configuration, read key by key; every message names the key by its full
// path.
class ObjectReader {
 public:
  ObjectReader(const json& object, std::string where, std::string prefix,
               std::span<const std::string_view> known)
      : object_(object), where_(std::move(where)), prefix_(std::move(prefix)) {
    for (const auto& [key, value] : object.items())
      if (std::find(known.begin(), known.end(), key) == known.end())
        throw_bad_input("{}: unknown config key \"{}{}\"", where_, prefix_, key);
  }

  bool has_value(const std::string& key) const { return object_.contains(key) && !object_[key].is_null(); }

  const json& value(const std::string& key) const {
    if (!object_.contains(key)) throw_bad_input("{}: config key \"{}{}\" is missing", where_, prefix_, key);
    return object_[key];
  }

  std::int64_t integer(const std::string& key) const { return as_integer(key, value(key), "an integer"); }

  double number(const std::string& key) const {
    if (!value(key).is_number()) fail(key, "a number", value(key));
    return value(key).get<double>();
  }

  bool boolean(const std::string& key) const {
    if (!value(key).is_boolean()) fail(key, "true or false", value(key));
    return value(key).get<bool>();
  }

  std::string string(const std::string& key) const {
    if (!value(key).is_string()) fail(key, "a string", value(key));
    return value(key).get<std::string>();
  }

  const json& object(const std::string& key) const {
    if (!value(key).is_object()) fail(key, "an object", value(key));
    return value(key);
  }

  std::vector<std::int64_t> integers(const std::string& key) const {
    std::vector<std::int64_t> result;
    for (const json& item : array(key, "an array of integers"))
      result.push_back(as_integer(key, item, "an array of integers"));
    return result;
  }

  template <typename Enum, std::size_t N>
  Enum choice(const std::string& key, const std::array<Name<Enum>, N>& names) const {
    return as_choice(key, value(key), names);
  }

  template <typename Enum, std::size_t N>
  std::vector<Enum> choices(const std::string& key, const std::array<Name<Enum>, N>& names) const {
    std::vector<Enum> result;
    for (const json& item : array(key, "an array of strings")) result.push_back(as_choice(key, item, names));
    return result;
  }

 private:
  [[noreturn]] void fail(const std::string& key, std::string_view expected, const json& found) const {
    throw_bad_input("{}: config key \"{}{}\": expected {}, found {}", where_, prefix_, key, expected,
                    shown(found));
  }

  const json& array(const std::string& key, std::string_view expected) const {
    if (!value(key).is_array()) fail(key, expected, value(key));
    return value(key);
  }

  std::int64_t as_integer(const std::string& key, const json& item, std::string_view expected) const {
    if (!item.is_number_integer()) fail(key, expected, item);
    if (item.is_number_unsigned() && item.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX))
      fail(key, "an integer below 2^63", item);
    return item.get<std::int64_t>();
  }

  template <typename Enum, std::size_t N>
  Enum as_choice(const std::string& key, const json& item, const std::array<Name<Enum>, N>& names) const {
    if (item.is_string())
      for (const auto& name : names)
        if (item.get_ref<const std::string&>() == name.text) return name.value;
    fail(key, "one of " + list_of(names), item);
  }

  const json& object_;
  std::string where_, prefix_;
};

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
  return moe;
}

NormPlacement parse_norm_placement(const ObjectReader& reader, const std::string& where) {
  NormPlacement placement{false, false, false};
  for (const auto member : reader.choices("norm_placement", kNormPlacements)) {
    if (placement.*member)
      throw_bad_input("{}: config key \"norm_placement\": \"{}\" is given twice", where,
                      name_of(kNormPlacements, member));
    placement.*member = true;
  }
  return placement;
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
  config.norm_placement = parse_norm_placement(reader, where);
  config.qk_norm = reader.boolean("qk_norm");
  config.attention_pattern = reader.choices("attention_pattern", kAttentionKinds);
  if (reader.has_value("attention_window")) config.attention_window = reader.integer("attention_window");
  config.rope_theta = reader.number("rope_theta");
  config.ffn_pattern = reader.choices("ffn_pattern", kFfnKinds);
  if (reader.has_value("moe")) config.moe = parse_moe(reader.object("moe"), where);
  config.tie_embeddings = reader.boolean("tie_embeddings");
  if (reader.has_value("bos_token_id")) config.bos_token_id = reader.integer("bos_token_id");
  config.eos_token_ids = reader.integers("eos_token_ids");
  validate(config, where);
  return config;
}

std::string to_json(const ModelConfig& config) {
  ordered_json placement = ordered_json::array();
  for (const auto& name : kNormPlacements)
    if (config.norm_placement.*name.value) placement.push_back(name.text);
  ordered_json moe;  // null
  if (config.moe) {
    moe = {
        {"experts", config.moe->experts}, {"top_k", config.moe->top_k}, {"ffn_size", config.moe->ffn_size}};
    moe["router_logit_cap"] =
        config.moe->router_logit_cap ? ordered_json(*config.moe->router_logit_cap) : nullptr;
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
  result["norm_placement"] = placement;
  result["qk_norm"] = config.qk_norm;
  result["attention_pattern"] = names_of(config.attention_pattern, kAttentionKinds);
  result["attention_window"] = config.attention_window;
  result["rope_theta"] = config.rope_theta;
  result["ffn_pattern"] = names_of(config.ffn_pattern, kFfnKinds);
  result["moe"] = moe;
  result["tie_embeddings"] = config.tie_embeddings;
  result["bos_token_id"] = config.bos_token_id ? ordered_json(*config.bos_token_id) : nullptr;
  result["eos_token_ids"] = config.eos_token_ids;
  return result.dump();
}

}  // namespace ptrt
