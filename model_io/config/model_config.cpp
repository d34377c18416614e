#include "model_io/config/model_config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

// Paths in the file give two digits to tracks and blocks and three to layers; token ids and
// positions are int32.
constexpr std::int64_t kMaxTracks = 100, kMaxBlocks = 100, kMaxLayers = 1000;
constexpr std::int64_t kMaxSize = std::numeric_limits<std::int32_t>::max();
constexpr double kMaxElements = 281474976710656.0;  // 2^48 weights: no product of sizes overflows below
constexpr double kMaxContextElements = 72057594037927936.0;  // 2^56 KV elements of one full context

void check_range(std::string_view key, std::int64_t value, std::int64_t low, std::int64_t high,
                 const std::string& where) {
  if (value < low || value > high)
    throw_bad_input("{}: config key \"{}\": expected {} to {}, found {}", where, key, low, high, value);
}

void check_positive(std::string_view key, double value, const std::string& where) {
  // Kernels take these as float32.
  if (!(static_cast<float>(value) > 0) || !std::isfinite(static_cast<float>(value)))
    throw_bad_input("{}: config key \"{}\": expected a number above 0, found {}", where, key, value);
}

void check_rope_scaling(const RopeScaling& scaling, double rope_theta, const std::string& where) {
  check_positive("rope_scaling.factor", scaling.factor, where);
  if (scaling.type == RopeScalingType::linear) return;
  check_range("rope_scaling.original_max_position", scaling.original_max_position, 1, kMaxSize, where);
  if (scaling.type == RopeScalingType::llama3) {
    check_positive("rope_scaling.low_freq_factor", scaling.low_freq_factor, where);
    check_positive("rope_scaling.high_freq_factor", scaling.high_freq_factor, where);
    return;
  }
  check_positive("rope_scaling.beta_fast", scaling.beta_fast, where);
  check_positive("rope_scaling.beta_slow", scaling.beta_slow, where);
  if (scaling.attention_factor)
    check_positive("rope_scaling.attention_factor", *scaling.attention_factor, where);
  if (rope_theta == 1)
    throw_bad_input("{}: config key \"rope_theta\": expected other than 1, as rope_scaling is yarn", where);
}

void check_optional(const ModelConfig& config, const std::string& where) {
  if (config.attention_scale) check_positive("attention_scale", *config.attention_scale, where);
  if (config.rope_scaling) check_rope_scaling(*config.rope_scaling, config.rope_theta, where);
  if (config.rope_theta_local) check_positive("rope_theta_local", *config.rope_theta_local, where);
  check_positive("embedding_scale", config.embedding_scale, where);
}

void check_sync_layers(const ModelConfig& config, const std::string& where) {
  const auto& sync = config.sync_layers;
  if (sync.empty()) throw_bad_input("{}: config key \"sync_layers\": expected at least one layer", where);
  std::int64_t previous = 0;
  for (const std::int64_t layer : sync) {
    if (layer <= previous)
      throw_bad_input(
          "{}: config key \"sync_layers\": expected 1-based layers in increasing order, found {} after {}",
          where, layer, previous);
    previous = layer;
  }
  if (previous != config.layers)
    throw_bad_input("{}: config key \"sync_layers\": expected the last to be layers = {}, found {}", where,
                    config.layers, previous);
  check_range("number of sync_layers", config.blocks(), 1, kMaxBlocks, where);
}

struct KindsUsed {
  bool rope = false, local = false, dense = false, moe = false;
};

KindsUsed kinds_used(const ModelConfig& config) {
  KindsUsed used;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    used.rope |= has_rope(config.attention_kind(layer));
    used.local |= is_local(config.attention_kind(layer));
    used.dense |= config.ffn_kind(layer) == FfnKind::dense;
    used.moe |= config.ffn_kind(layer) == FfnKind::moe;
  }
  return used;
}

void check_patterns(const ModelConfig& config, const KindsUsed& used, const std::string& where) {
  if (used.rope && config.head_dim % 2 != 0)
    throw_bad_input("{}: config key \"head_dim\": expected an even number, as layers have RoPE, found {}",
                    where, config.head_dim);
  check_range("attention_window", config.attention_window, used.local ? 1 : 0, kMaxSize, where);
  check_range("ffn_size", config.ffn_size, used.dense ? 1 : 0, kMaxSize, where);
  if (used.moe && !config.moe)
    throw_bad_input("{}: config key \"moe\": expected an object, as ffn_pattern has \"moe\", found null",
                    where);
  if (!config.moe) return;
  check_range("moe.experts", config.moe->experts, 1, kMaxSize, where);
  check_range("moe.top_k", config.moe->top_k, 1, config.moe->experts, where);
  check_range("moe.ffn_size", config.moe->ffn_size, 1, kMaxSize, where);
  if (config.moe->router_logit_cap)
    check_positive("moe.router_logit_cap", *config.moe->router_logit_cap, where);
}

// Before any size is multiplied as an integer: the whole model and one full context in floating
// point.
void check_volume(const ModelConfig& config, const KindsUsed& used, const std::string& where) {
  const auto d = static_cast<double>(config.hidden_size), head_dim = static_cast<double>(config.head_dim);
  const auto heads = static_cast<double>(config.heads), kv_heads = static_cast<double>(config.kv_heads);
  const auto layers = static_cast<double>(config.tracks * config.layers);
  double ffn = used.dense ? 3 * d * static_cast<double>(config.ffn_size) : 0;
  if (used.moe)
    ffn = std::max(
        ffn, 3 * d * static_cast<double>(config.moe->ffn_size) * static_cast<double>(config.moe->experts));
  const double elements =
      2 * d * static_cast<double>(config.vocab_size) + layers * (2 * d * (heads + kv_heads) * head_dim + ffn);
  if (elements > kMaxElements)
    throw_bad_input(
        "{}: the config asks for about {:.1e} weights; the most that this program takes is {:.1e}", where,
        elements, kMaxElements);
  const double context = layers * 2 * kv_heads * head_dim * static_cast<double>(config.max_context);
  if (context > kMaxContextElements)
    throw_bad_input(
        "{}: config key \"max_context\": {} tokens need about {:.1e} keys and values; the most is {:.1e}",
        where, config.max_context, context, kMaxContextElements);
}

}  // namespace

void validate(const ModelConfig& config, const std::string& where) {
  check_range("tracks", config.tracks, 1, kMaxTracks, where);
  check_range("layers", config.layers, 1, kMaxLayers, where);
  check_sync_layers(config, where);
  check_range("hidden_size", config.hidden_size, 1, kMaxSize, where);
  check_range("heads", config.heads, 1, kMaxSize, where);
  check_range("kv_heads", config.kv_heads, 1, kMaxSize, where);
  check_range("head_dim", config.head_dim, 1, kMaxSize, where);
  check_range("vocab_size", config.vocab_size, 1, kMaxSize, where);
  check_range("max_context", config.max_context, 1, kMaxSize, where);
  if (config.heads % config.kv_heads != 0)
    throw_bad_input("{}: config key \"heads\": expected a multiple of kv_heads = {}, found {}", where,
                    config.kv_heads, config.heads);
  check_positive("norm_eps", config.norm_eps, where);
  check_positive("rope_theta", config.rope_theta, where);
  check_optional(config, where);
  if (config.attention_pattern.empty())
    throw_bad_input("{}: config key \"attention_pattern\": expected at least one kind", where);
  if (config.ffn_pattern.empty())
    throw_bad_input("{}: config key \"ffn_pattern\": expected at least one kind", where);
  const KindsUsed used = kinds_used(config);
  check_patterns(config, used, where);
  check_volume(config, used, where);
  if (config.bos_token_id) check_range("bos_token_id", *config.bos_token_id, 0, config.vocab_size - 1, where);
  for (const std::int64_t id : config.eos_token_ids)
    check_range("eos_token_ids", id, 0, config.vocab_size - 1, where);
}

}  // namespace ptrt
