#include <gtest/gtest.h>

#include <cmath>

#include "model_fixture.h"

namespace ptrt {
namespace {

using nlohmann::json;

struct BadConfig {
  const char* what;
  json changes;
  std::vector<std::string> words;  // that the message must have
};

const json kHuge = std::int64_t{1} << 40;

std::vector<BadConfig> bad_configs() {
  const json moe = small_config_json()["moe"], fusion = small_config_json()["fusion"];
  const auto with = [](json object, const char* key, json value) {
    object[key] = std::move(value);
    return object;
  };
  return {
      {"unknown key", {{"hiden_size", 3}}, {"unknown", "hiden_size"}},
      {"unknown key in fusion", {{"fusion", with(fusion, "weights", 1)}}, {"unknown", "fusion.weights"}},
      {"unknown key in moe", {{"moe", with(moe, "capacity", 1)}}, {"unknown", "moe.capacity"}},
      {"text for an integer", {{"heads", "four"}}, {"\"heads\"", "an integer", "\"four\""}},
      {"float for an integer", {{"heads", 4.0}}, {"\"heads\"", "an integer", "4.0"}},
      {"true for an integer", {{"layers", true}}, {"\"layers\"", "an integer", "true"}},
      {"null for an integer", {{"layers", nullptr}}, {"\"layers\"", "an integer", "null"}},
      {"integer beyond 64 bits", {{"layers", UINT64_MAX}}, {"\"layers\"", "2^63"}},
      {"integer for a truth", {{"qk_norm", 1}}, {"\"qk_norm\"", "true or false"}},
      {"text for a number", {{"rope_theta", "big"}}, {"\"rope_theta\"", "a number"}},
      {"number for a text", {{"name", 5}}, {"\"name\"", "a string"}},
      {"number for a list", {{"sync_layers", 3}}, {"\"sync_layers\"", "array of integers"}},
      {"text in a list of integers", {{"sync_layers", {1, "3"}}}, {"\"sync_layers\"", "\"3\""}},
      {"list for an object", {{"fusion", {1}}}, {"\"fusion\"", "an object"}},
      {"unknown fusion", {{"fusion", with(fusion, "op", "max")}}, {"fusion.op", "\"mean\"", "\"max\""}},
      {"unknown attention",
       {{"attention_pattern", {"rope"}}},
       {"attention_pattern", "local_nope", "\"rope\""}},
      {"norm placed twice", {{"norm_placement", {"pre", "pre"}}}, {"norm_placement", "twice"}},
      {"no track", {{"tracks", 0}}, {"\"tracks\"", "1 to 100", "0"}},
      {"too many tracks", {{"tracks", 101}}, {"\"tracks\"", "1 to 100", "101"}},
      {"too many layers", {{"layers", 1001}, {"sync_layers", {1001}}}, {"\"layers\"", "1 to 1000"}},
      {"negative hidden size", {{"hidden_size", -24}}, {"\"hidden_size\"", "-24"}},
      {"no dense ffn", {{"ffn_size", 0}}, {"\"ffn_size\"", "found 0"}},
      {"heads that do not divide", {{"kv_heads", 3}}, {"\"heads\"", "kv_heads = 3", "found 4"}},
      {"odd head with rotation", {{"head_dim", 5}}, {"\"head_dim\"", "even", "5"}},
      {"no sync layer", {{"sync_layers", json::array()}}, {"sync_layers"}},
      {"sync layer 0", {{"sync_layers", {0, 3}}}, {"sync_layers", "1-based"}},
      {"sync layers that fall", {{"sync_layers", {2, 1, 3}}}, {"sync_layers", "1 after 2"}},
      {"sync layers short of the last", {{"sync_layers", {1, 2}}}, {"sync_layers", "layers = 3", "found 2"}},
      {"no window", {{"attention_window", 0}}, {"attention_window", "found 0"}},
      {"negative window", {{"attention_window", -1}}, {"attention_window", "-1"}},
      {"no attention", {{"attention_pattern", json::array()}}, {"attention_pattern"}},
      {"mixture without moe", {{"moe", nullptr}}, {"\"moe\"", "ffn_pattern"}},
      {"no expert", {{"moe", with(moe, "experts", 0)}}, {"moe.experts"}},
      {"top_k above the experts", {{"moe", with(moe, "top_k", 4)}}, {"moe.top_k", "1 to 3", "4"}},
      {"cap below 0", {{"moe", with(moe, "router_logit_cap", -1)}}, {"moe.router_logit_cap", "-1"}},
      {"bos out of range", {{"bos_token_id", 259}}, {"bos_token_id", "0 to 258", "259"}},
      {"eos out of range", {{"eos_token_ids", {1, -1}}}, {"eos_token_ids", "-1"}},
      {"no epsilon", {{"norm_eps", 0}}, {"norm_eps", "above 0"}},
      {"epsilon below float32", {{"norm_eps", 1e-60}}, {"norm_eps", "above 0"}},
      {"no theta", {{"rope_theta", -1.0}}, {"rope_theta"}},
      {"bias of nothing", {{"attention_bias", {"q", "x"}}}, {"attention_bias", "\"o\"", "\"x\""}},
      {"bias twice", {{"attention_bias", {"q", "o", "q"}}}, {"attention_bias", "\"q\"", "twice"}},
      {"bias as a truth", {{"attention_bias", true}}, {"attention_bias", "array of strings"}},
      {"unknown order", {{"qk_norm_order", "after"}}, {"qk_norm_order", "\"after_rope\"", "\"after\""}},
      {"pre-scale twice", {{"pre_scale_norms", {"pre", "pre"}}}, {"pre_scale_norms", "\"pre\"", "twice"}},
      {"pre-scale of the final norm", {{"pre_scale_norms", {"final"}}}, {"pre_scale_norms", "\"final\""}},
      {"unknown activation", {{"ffn_activation", "relu"}}, {"ffn_activation", "\"gelu_tanh\"", "\"relu\""}},
      {"no attention scale", {{"attention_scale", 0}}, {"attention_scale", "above 0"}},
      {"text for an attention scale", {{"attention_scale", "1"}}, {"attention_scale", "a number"}},
      {"negative embedding scale", {{"embedding_scale", -2.5}}, {"embedding_scale", "above 0", "-2.5"}},
      {"embedding scale beyond float32", {{"embedding_scale", 1e60}}, {"embedding_scale"}},
      {"no local theta", {{"rope_theta_local", 0.0}}, {"rope_theta_local", "above 0"}},
      {"integer for a truth in moe",
       {{"moe", with(moe, "normalize_top_k", 0)}},
       {"moe.normalize_top_k", "true or false"}},
      {"absurd vocabulary", {{"vocab_size", kHuge}}, {"vocab_size"}},
      {"absurd product", {{"hidden_size", 2000000000}, {"ffn_size", 2000000000}}, {"weights"}},
      {"absurd experts",
       {{"moe", with(moe, "experts", 2000000000)}, {"hidden_size", 2000000000}},
       {"weights"}},
      {"absurd context", {{"max_context", 2000000000}, {"head_dim", 200000000}}, {"max_context"}},
  };
}

TEST(ModelConfig, RefusesWhatMakesNoSense) {
  for (const BadConfig& bad : bad_configs()) {
    SCOPED_TRACE(bad.what);
    const std::string message = message_of([&] { small_config(bad.changes); });
    expect_words(message, bad.words);
    EXPECT_EQ(message.rfind("small: ", 0), 0u) << message;
  }
}

json rope_scaling(const char* type) {
  json scaling = {{"type", type}, {"factor", 8}};
  if (scaling["type"] == "linear") return scaling;
  scaling["original_max_position"] = 64;
  if (scaling["type"] == "llama3")
    scaling.update({{"low_freq_factor", 1}, {"high_freq_factor", 4.0}});
  else
    scaling.update({{"beta_fast", 32}, {"beta_slow", 1.0}, {"attention_factor", nullptr}});
  return scaling;
}

TEST(ModelConfig, RefusesWrongRopeScalings) {
  const auto message = [](const json& scaling) {
    return message_of([&] { small_config({{"rope_scaling", scaling}}); });
  };
  for (const char* type : {"linear", "llama3", "yarn"}) {
    const json good = rope_scaling(type);
    EXPECT_EQ(message(good), "") << type;
    for (const auto& [key, value] : good.items()) {
      const std::string path = "\"rope_scaling." + key + "\"";
      json bad = good;
      bad.erase(key);
      if (key == "attention_factor")
        EXPECT_EQ(message(bad), "");
      else
        expect_words(message(bad), {path, "missing"});
      for (const json& nonsense : {json(0), json(-1), json("one")}) {
        bad[key] = nonsense;
        expect_words(message(bad), {path});
      }
    }
    json more = good;
    more["mscale"] = 1;
    expect_words(message(more), {"unknown", "rope_scaling.mscale"});
  }
  json of_another = rope_scaling("linear");
  of_another["beta_fast"] = 32;
  expect_words(message(of_another), {"unknown", "rope_scaling.beta_fast"});
  json dynamic = rope_scaling("linear");
  dynamic["type"] = "dynamic";
  expect_words(message(dynamic), {"rope_scaling.type", "\"llama3\"", "\"dynamic\""});
  expect_words(message_of([&] {
                 small_config({{"rope_scaling", rope_scaling("yarn")}, {"rope_theta", 1}});
               }),
               {"\"rope_theta\"", "yarn"});
  expect_words(message("yarn"), {"rope_scaling", "an object"});
}

// Files that say what is the default anyway are the same model, and have the same text.
TEST(ModelConfig, DefaultsOfOptionalKeysMeanAbsent) {
  const std::string plain = to_json(small_config());
  json null_moe = small_config_json()["moe"], true_moe = null_moe;
  null_moe["normalize_top_k"] = nullptr;
  true_moe["normalize_top_k"] = true;
  const json nulls = {
      {"attention_bias", nullptr}, {"qk_norm_order", nullptr},    {"pre_scale_norms", nullptr},
      {"rope_scaling", nullptr},   {"rope_theta_local", nullptr}, {"attention_scale", nullptr},
      {"ffn_activation", nullptr}, {"embedding_scale", nullptr},  {"moe", null_moe}};
  const json defaults = {{"attention_bias", json::array()},
                         {"qk_norm_order", "before_rope"},
                         {"pre_scale_norms", json::array()},
                         {"attention_scale", 1 / std::sqrt(6.0)},
                         {"ffn_activation", "silu"},
                         {"embedding_scale", 1},
                         {"moe", true_moe}};
  EXPECT_EQ(to_json(small_config(nulls)), plain);
  EXPECT_EQ(to_json(small_config(defaults)), plain);
}

TEST(ModelConfig, TakesOptionalKeysThatHaveNoEffect) {
  small_config({{"qk_norm", false}, {"qk_norm_order", "after_rope"}});
  small_config({{"norm_placement", json::array()}, {"pre_scale_norms", {"post", "combine"}}});
  small_config({{"attention_pattern", {"global_nope"}},
                {"rope_scaling", rope_scaling("yarn")},
                {"rope_theta_local", 100.0}});
}

TEST(ModelConfig, EveryKeyButFourMustBeThere) {
  const json all = small_config_json();
  for (const auto& [key, value] : all.items()) {
    json config = all;
    config.erase(key);
    const std::string message = message_of([&] { parse_config(config.dump(), "x"); });
    const bool optional = key == "name" || key == "bos_token_id";
    const bool needed_here =
        key == "moe" || key == "attention_window";  // as the patterns of this config stand
    if (optional) {
      EXPECT_EQ(message, "") << key;
    } else {
      expect_words(message, {needed_here ? key : "\"" + key + "\" is missing"});
    }
  }
}

TEST(ModelConfig, RefusesTextThatIsNoConfig) {
  expect_words(message_of([] { parse_config("{\"tracks\": ", "f.json"); }), {"f.json", "not valid JSON"});
  expect_words(message_of([] { parse_config("[1, 2]", "f.json"); }), {"f.json", "not a JSON object"});
  expect_words(message_of([] { parse_config("{\"rope_theta\": 1e999}", "f.json"); }), {"f.json", "JSON"});
  std::string twice = small_config_json().dump();
  twice.insert(1, "\"tracks\": 4, ");
  expect_words(message_of([&] { parse_config(twice, "f.json"); }), {"\"tracks\"", "twice"});
}

TEST(ModelConfig, TakesWhatIsUnusualButWellDefined) {
  // Kinds that a pattern has but no layer reaches need nothing.
  const ModelConfig short_model = small_config({{"layers", 1},
                                                {"sync_layers", {1}},
                                                {"moe", nullptr},
                                                {"attention_window", 0},
                                                {"norm_placement", json::array()}});
  EXPECT_FALSE(short_model.norm_placement.pre);
  EXPECT_EQ(small_config({{"head_dim", 5}, {"attention_pattern", {"global_nope"}}}).head_dim, 5);
  EXPECT_EQ(small_config({{"ffn_pattern", {"moe"}}, {"ffn_size", 0}}).ffn_size, 0);
  EXPECT_EQ(small_config({{"rope_theta", 500000}}).rope_theta, 500000.0);
  EXPECT_TRUE(small_config({{"eos_token_ids", json::array()}}).eos_token_ids.empty());
}

// All of them, none with its default.
json optional_keys(const char* scaling) {
  json moe = small_config_json()["moe"];
  moe["normalize_top_k"] = false;
  return {{"attention_bias", {"q", "o"}},
          {"qk_norm_order", "after_rope"},
          {"pre_scale_norms", {"pre", "output", "post", "dispatch", "combine"}},
          {"rope_scaling", rope_scaling(scaling)},
          {"rope_theta_local", 500.5},
          {"attention_scale", 0.25},
          {"ffn_activation", "gelu_tanh"},
          {"embedding_scale", 33.5},
          {"moe", moe}};
}

TEST(ModelConfig, SurvivesARoundTrip) {
  for (const json& changes : {json::object(), json{{"moe", nullptr}, {"ffn_pattern", {"dense"}}},
                              json{{"bos_token_id", nullptr}, {"name", "α \"quoted\""}},
                              optional_keys("linear"), optional_keys("llama3"), optional_keys("yarn")}) {
    json expected = small_config_json();
    expected.update(changes);
    const std::string text = to_json(small_config(changes));
    EXPECT_EQ(json::parse(text), expected);
    EXPECT_EQ(to_json(parse_config(text, "again")), text);
  }
}

}  // namespace
}  // namespace ptrt
