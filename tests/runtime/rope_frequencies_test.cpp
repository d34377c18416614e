// The frequencies of each rope_scaling against those of transformers (golden/, made by
// scripts/goldens/make_rope_goldens.py), and which layers take them.
#include "runtime/model/rope_frequencies.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

namespace ptrt {
namespace {

using nlohmann::json;

ModelConfig with(const json& changes) {
  json config = json::parse(R"({
    "name": "rope", "tracks": 1, "layers": 2, "sync_layers": [2],
    "fusion": {"op": "mean", "dispatch_norm": false, "combine_norm": false},
    "hidden_size": 24, "heads": 4, "kv_heads": 2, "head_dim": 6, "ffn_size": 20,
    "vocab_size": 259, "max_context": 64, "norm_eps": 1e-5, "norm_placement": ["pre"],
    "qk_norm": false, "attention_pattern": ["global_rope", "local_rope"], "attention_window": 7,
    "rope_theta": 10000.0, "ffn_pattern": ["dense"], "moe": null,
    "tie_embeddings": false, "bos_token_id": 256, "eos_token_ids": [257]})");
  config.update(changes);
  return parse_config(config.dump(), "rope");
}

void expect_rope(const RopeFrequencies& rope, const std::vector<double>& frequencies, double magnitude) {
  ASSERT_EQ(rope.frequencies.size(), frequencies.size());
  for (std::size_t j = 0; j < frequencies.size(); ++j)
    EXPECT_NEAR(rope.frequencies[j], frequencies[j], 1e-6 * frequencies[j]) << "pair " << j;
  EXPECT_NEAR(rope.magnitude, magnitude, 1e-12);
}

TEST(RopeFrequencies, AreThoseOfTransformers) {
  std::ifstream file(PTRT_RUNTIME_GOLDEN_DIR "/rope_frequencies.json");
  const json cases = json::parse(file);
  ASSERT_GE(cases.size(), 10u);
  for (const json& one : cases) {
    SCOPED_TRACE(one["rope_scaling"].dump());
    const ModelConfig config = with({{"head_dim", one["head_dim"]},
                                     {"rope_theta", one["rope_theta"]},
                                     {"rope_scaling", one["rope_scaling"]}});
    expect_rope(rope_frequencies(config), one["frequencies"], one["magnitude"]);
  }
}

TEST(RopeFrequencies, AreExactWithoutScaling) {
  const RopeFrequencies rope = rope_frequencies(with(json::object()));
  for (std::size_t j = 0; j < 3; ++j)
    EXPECT_EQ(rope.frequencies[j], std::pow(10000.0, -2.0 * static_cast<double>(j) / 6));
  EXPECT_EQ(rope.magnitude, 1);
}

TEST(RopeFrequencies, OfLocalLayersAreNeverScaled) {
  const json scaling = {{"type", "linear"}, {"factor", 2}};
  const ModelConfig config = with({{"rope_theta_local", 8.0}, {"rope_scaling", scaling}});
  ASSERT_TRUE(config.has_local_rope_theta());
  expect_rope(local_rope_frequencies(config), {1, 0.5, 0.25}, 1);
  EXPECT_EQ(rope_frequencies(config).frequencies[0], 0.5);
  EXPECT_FALSE(with(json::object()).has_local_rope_theta());
  EXPECT_FALSE(
      with({{"rope_theta_local", 8.0}, {"attention_pattern", {"global_rope"}}}).has_local_rope_theta());
}

}  // namespace
}  // namespace ptrt
