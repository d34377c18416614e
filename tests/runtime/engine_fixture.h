// Whole models through the engine, with all tracks or as one rank of several: for tests that compare how it is
// run.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model_io/shard/track_shard.h"
#include "model_io/tokenizer/tokenizer.h"
#include "runtime/serving/engine.h"

namespace ptrt::testing {

class EngineRunner {
 public:
  EngineRunner(const ModelConfig& config, std::unique_ptr<Backend> backend, TrackShard shard,
               const Tokenizer* tokenizer, const EngineOptions& options)
      : backend_(std::move(backend)),
        shard_(std::move(shard)),
        solo_(make_solo_track_comm()),
        placement_(make_placement(1, 0, config.tracks)),
        engine_(config, config, shard_, *backend_, {*solo_, *solo_}, placement_, tokenizer, options) {}
  // The rank of `comm`, whose ranks are one replica.
  EngineRunner(const ModelConfig& config, std::unique_ptr<Backend> backend, TrackShard shard, TrackComm& comm,
               const Placement& placement, const Tokenizer* tokenizer, const EngineOptions& options)
      : backend_(std::move(backend)),
        shard_(std::move(shard)),
        placement_(placement),
        engine_(config, config, shard_, *backend_, {comm, comm}, placement_, tokenizer, options) {}

  std::vector<Completion> run(Task task, std::span<const Request> requests) {
    std::vector<std::int64_t> order(requests.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
    std::vector<Completion> completions(requests.size());
    std::size_t count = 0;
    Engine::Hooks hooks;
    hooks.completed = [&](Completion&& done) {
      ++count;
      completions[static_cast<std::size_t>(done.request)] = done;
    };
    EXPECT_TRUE(engine_.run(task, requests, order, hooks));
    EXPECT_EQ(count, requests.size());
    return completions;
  }
  const RunCounters& counters() const { return engine_.counters(); }

 private:
  std::unique_ptr<Backend> backend_;
  TrackShard shard_;
  std::unique_ptr<TrackComm> solo_;
  Placement placement_;
  Engine engine_;
};

// Requests of many lengths, greedy and sampled, with and without stop strings. Their output depends on all
// tokens before. `vocab` bounds the prompts' tokens.
inline std::vector<Request> mixed_requests(std::int64_t count, std::int64_t longest_prompt,
                                           std::int64_t most_tokens, std::int32_t vocab) {
  std::vector<Request> requests;
  for (std::int64_t i = 0; i < count; ++i) {
    Request request;
    const std::int64_t length = 1 + i * 7 % longest_prompt;
    for (std::int64_t p = 0; p < length; ++p)
      request.tokens.push_back(static_cast<std::int32_t>((i * 31 + p * p * 17) % vocab));
    request.max_tokens = 1 + i * 5 % most_tokens;
    request.seed = static_cast<std::uint64_t>(100 + i);
    if (i % 3 != 0) request.temperature = 1.0f;
    request.ignore_eos = i % 2 == 0;
    if (i % 4 == 2) request.top_k = 50;
    if (i % 4 == 3) request.top_p = 0.9f;
    if (i % 5 < 2) request.logprobs = true;
    if (i % 4 == 1) request.stop = {"e", "t", "qu", " "};
    requests.push_back(std::move(request));
  }
  return requests;
}

// Rules of every kind, alternatives and ends for such requests; all that is allowed may still come.
inline void add_rules(std::vector<Request>& requests, bool of_output = true) {
  for (std::size_t i = 0; i < requests.size(); ++i) {
    Request& request = requests[i];
    LogitRules& rules = request.rules;
    if (i % 3 == 0 && of_output)
      rules.repetition_penalty = 1.3f, rules.presence_penalty = 0.5f, rules.frequency_penalty = 0.25f;
    if (i % 4 == 2 && of_output) rules.bad_words = {{101}, {32, 116}, {66, 67, 68}};
    if (i % 3 == 1) rules.bias = {{40, 2}, {65, 3}, {100, -5}};
    if (i % 5 == 3)
      for (std::int32_t token = 0; token < 250; token += 2) rules.allowed.push_back(token);
    if (i % 2 == 1)
      rules.min_tokens = std::min<std::int64_t>(request.max_tokens, static_cast<std::int64_t>(i) % 7);
    if (i % 4 == 1) request.min_p = 0.02f;
    if (i % 6 == 2)
      for (std::int32_t token = 60; token < 80; ++token) request.stop_tokens.push_back(token);
    request.include_stop = i % 2 == 0;
    if (request.logprobs) request.top_logprobs = static_cast<std::int64_t>(i % 4) * 6;
  }
}

inline void expect_same(const std::vector<Completion>& actual, const std::vector<Completion>& expected,
                        const std::string& where) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const std::string request = where + ", request " + std::to_string(i);
    EXPECT_EQ(actual[i].tokens, expected[i].tokens) << request;
    EXPECT_EQ(actual[i].text, expected[i].text) << request;
    EXPECT_EQ(actual[i].finish_reason, expected[i].finish_reason) << request;
    EXPECT_EQ(actual[i].logprobs.size(), expected[i].logprobs.size()) << request;
    EXPECT_EQ(actual[i].top_logprobs.size(), expected[i].top_logprobs.size()) << request;
    EXPECT_EQ(actual[i].gaps_s.size() + 1, actual[i].tokens.size()) << request;
  }
}

// A model small enough for scalar code; several end-of-sequence tokens, so that sequences end unforeseen.
inline constexpr const char* kSmallBytesModel = R"({
  "name": "small", "tracks": 2, "layers": 2, "sync_layers": [1, 2],
  "fusion": {"op": "mean", "dispatch_norm": false, "combine_norm": false},
  "hidden_size": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_size": 24,
  "vocab_size": 259, "max_context": 96, "norm_eps": 1e-5, "norm_placement": ["pre"],
  "qk_norm": false, "attention_pattern": ["global_rope", "local_rope"], "attention_window": 9,
  "rope_theta": 500.0, "ffn_pattern": ["dense"], "moe": null,
  "tie_embeddings": false, "bos_token_id": 256, "eos_token_ids": [257, 3, 50, 100, 150, 200]})";

}  // namespace ptrt::testing
