// Requests whose prompts begin alike, and requests of several samples: the results are those of each on its own,
// whatever is shared.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "engine_fixture.h"
#include "kernels/cpu/reference_backend.h"
#include "kernels/make_cpu_backend.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"
#include "runtime/requests/sample_seed.h"
#include "thread_comm.h"

namespace ptrt::testing {
namespace {

// Of three families, whose prompts begin with 0 to 60 tokens of the family's.
std::vector<Request> sharing_requests(Task task) {
  std::vector<Request> requests = mixed_requests(30, 20, 14, 256);
  for (std::size_t i = 0; i < requests.size(); i++) {
    std::vector<std::int32_t> prefix;
    for (std::size_t p = 0; p < i * 23 % 61; p++)
      prefix.push_back(static_cast<std::int32_t>((p * 13 + i % 3 * 40) % 200));
    auto& tokens = requests[i].tokens;
    tokens.insert(tokens.begin(), prefix.begin(), prefix.end());
    if (task == Task::generate) continue;
    requests[i].max_tokens = 0;
    tokens.push_back(9);
    // From the first token on, from the end of what is shared, and from within it.
    const std::int64_t from[] = {1, std::ssize(prefix), std::ssize(prefix) / 2};
    requests[i].score_from = std::max<std::int64_t>(1, from[i % 3]);
  }
  return requests;
}

class EnginePrefix : public ::testing::Test {
 protected:
  struct Way {
    bool reference = false;
    std::int64_t max_batch = 5, max_rows = 24, pages = 40;
    DType kv = DType::float32;
    Compute compute = Compute::float32;
  };

  EngineRunner make(const Way& way, bool prefix_cache) {
    std::unique_ptr<Backend> backend;
    if (way.reference)
      backend = std::make_unique<ReferenceBackend>();
    else
      backend = make_cpu_backend({.threads = 2, .compute = way.compute});
    TrackShard shard = random_shard(config_, 7, DType::float32, 0, config_.tracks, *backend);
    return {config_,
            std::move(backend),
            std::move(shard),
            tokenizer_.tokenizer.get(),
            {.max_batch = way.max_batch,
             .max_rows = way.max_rows,
             .kv_pages = way.pages,
             .kv_dtype = way.kv,
             .prefix_cache = prefix_cache}};
  }

  static void expect_equal(const std::vector<Completion>& actual, const std::vector<Completion>& expected,
                           const std::string& where) {
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); i++) {
      const std::string request = fmt::format("{}, request {}", where, i);
      expect_same_output(actual[i], expected[i], request);
      ASSERT_EQ(actual[i].more.size(), expected[i].more.size()) << request;
      for (std::size_t s = 0; s < expected[i].more.size(); s++)
        expect_same_output(actual[i].more[s], expected[i].more[s], request);
      EXPECT_EQ(actual[i].prompt_logprobs, expected[i].prompt_logprobs) << request;
      EXPECT_EQ(actual[i].is_greedy, expected[i].is_greedy) << request;
      EXPECT_EQ(actual[i].prompt_tokens, expected[i].prompt_tokens) << request;
    }
  }
  static void expect_same_output(const Output& actual, const Output& expected, const std::string& where) {
    EXPECT_EQ(actual.tokens, expected.tokens) << where;
    EXPECT_EQ(actual.logprobs, expected.logprobs) << where;
    EXPECT_EQ(actual.text, expected.text) << where;
    EXPECT_EQ(actual.finish_reason, expected.finish_reason) << where;
  }

  ModelConfig config_ = parse_config(kSmallBytesModel, "the test's configuration");
  TokenizerChoice tokenizer_ = make_tokenizer({.kind = "bytes", .model = {}, .file = {}}, config_);
};

TEST_F(EnginePrefix, ResultsAreTheSameBits) {
  const Way ways[] = {
      {.reference = true},
      {},
      {.max_batch = 1, .max_rows = 100},
      {.max_batch = 16, .max_rows = 200, .pages = 200},
      {.max_batch = 9, .max_rows = 30, .pages = 9},  // what is preempted, and what is dropped from the cache
      {.kv = DType::bfloat16, .compute = Compute::bfloat16},
  };
  for (const Task task : {Task::generate, Task::score}) {
    const std::vector<Request> requests = sharing_requests(task);
    for (const Way& way : ways) {
      EngineRunner without = make(way, false), with = make(way, true);
      const auto where = fmt::format("way {}, task {}", &way - ways, static_cast<int>(task));
      expect_equal(with.run(task, requests), without.run(task, requests), where);
      EXPECT_GT(with.counters().reused_tokens, 50u) << where;
      EXPECT_EQ(without.counters().reused_tokens, 0u) << where;
      EXPECT_LT(with.counters().prefill_tokens, without.counters().prefill_tokens) << where;
      EXPECT_EQ(with.counters().cannot_reuse > 0, task == Task::score) << where;
    }
  }
}

TEST_F(EnginePrefix, OverRanksAndInHalves) {
  const std::vector<Request> requests = sharing_requests(Task::generate);
  const auto expected = make({}, false).run(Task::generate, requests);
  for (const bool one_host : {true, false}) {
    ThreadCommGroup group(2, one_host);
    group.run([&](TrackComm& comm) {
      const Placement placement = make_placement(2, comm.rank(), config_.tracks);
      auto backend = make_cpu_backend({.threads = 1});
      TrackShard shard =
          random_shard(config_, 7, DType::float32, placement.first_track, placement.tracks, *backend);
      EngineRunner runner(config_, std::move(backend), std::move(shard), comm, placement,
                          tokenizer_.tokenizer.get(), {.max_batch = 7, .max_rows = 160, .kv_pages = 14});
      expect_equal(runner.run(Task::generate, requests), expected, fmt::format("rank {}", comm.rank()));
      EXPECT_GT(runner.counters().reused_tokens, 0u);
    });
    EXPECT_EQ(group.transfers() > 0, !one_host) << "some steps ran in halves";
  }
}

TEST_F(EnginePrefix, PromptLogprobsReuseNothing) {
  std::vector<Request> requests = sharing_requests(Task::generate);
  for (std::size_t i = 0; i < requests.size(); i += 2) requests[i].prompt_logprobs = 0;
  const Way way{.max_batch = 9, .max_rows = 30, .pages = 9};
  EngineRunner with = make(way, true);
  const auto actual = with.run(Task::generate, requests);
  expect_equal(actual, make(way, false).run(Task::generate, requests), "prompt log-probabilities");
  for (std::size_t i = 0; i < requests.size(); i += 2) EXPECT_EQ(actual[i].reused_tokens, 0) << i;
  EXPECT_GT(with.counters().reused_tokens, 0u);
}

// A sample is the output of a request for one, with the sample's seed.
TEST_F(EnginePrefix, SamplesAreAsIfAskedForAlone) {
  std::vector<Request> requests = sharing_requests(Task::generate), single;
  std::vector<std::pair<std::size_t, std::int64_t>> places;
  for (std::size_t i = 0; i < requests.size(); i++) {
    Request& request = requests[i];
    request.temperature = 1;
    request.samples = 1 + static_cast<std::int64_t>(i % 8);
    if (i % 5 == 4) request.prompt_logprobs = 0;
    for (std::int64_t s = 0; s < request.samples; s++) {
      places.emplace_back(i, s);
      single.push_back(request);
      single.back().samples = 1;
      single.back().seed = seed_of_sample(request.seed, s);
    }
  }
  const auto alone = make({}, false).run(Task::generate, single);
  std::vector<Completion> expected(requests.size());
  for (std::size_t p = 0; p < places.size(); p++) {
    const auto& [i, s] = places[p];
    if (s == 0)
      expected[i] = alone[p];
    else
      expected[i].more.push_back(alone[p]);
  }
  EXPECT_NE(expected[7].tokens, expected[7].more[0].tokens);
  for (const bool prefix_cache : {false, true})
    for (const std::int64_t pages : {60, 9}) {
      EngineRunner runner = make({.max_batch = 4, .max_rows = 40, .pages = pages}, prefix_cache);
      expect_equal(runner.run(Task::generate, requests), expected,
                   fmt::format("pages {}, cache {}", pages, prefix_cache));
      EXPECT_GT(runner.counters().reused_tokens, 100u);
    }
}

}  // namespace
}  // namespace ptrt::testing
