// Sums that travel while the caller computes, and steps whose halves take turns so: the bits of plain sums and
// steps, whatever the order in which messages come.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "engine_fixture.h"
#include "kernels/base/error.h"
#include "kernels/cpu/reference_backend.h"
#include "kernels/make_cpu_backend.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"
#include "runtime/sync/host_all_reduce.h"
#include "thread_comm.h"

namespace ptrt::testing {
namespace {

using Values = std::vector<float>;

Values random_values(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Values values(static_cast<std::size_t>(count));
  for (float& v : values) v = normal(random) * std::exp(2 * normal(random));
  return values;
}

// One sum of `count` values over ranks · parts parts, and what every rank must get of it.
struct Case {
  Case(int ranks, std::int64_t parts_of_rank, std::int64_t size, unsigned seed)
      : parts(parts_of_rank), count(size), values(random_values(ranks * parts * count, seed)) {
    std::vector<const float*> all;
    for (std::int64_t p = 0; p < ranks * parts; p++) all.push_back(values.data() + p * count);
    expected.resize(static_cast<std::size_t>(count));
    make_cpu_backend({.threads = 1})->tree_sum(all, count, 0.5f, nullptr, expected.data());
  }
  Values of_rank(int rank) const {
    return {values.begin() + rank * parts * count, values.begin() + (rank + 1) * parts * count};
  }
  std::int64_t parts, count;
  Values values, expected;
};

std::vector<const float*> parts_of(const Values& mine, std::int64_t parts) {
  std::vector<const float*> local;
  for (std::int64_t p = 0; p < parts; p++) local.push_back(mine.data() + p * (std::ssize(mine) / parts));
  return local;
}

// A rank a host, or two ranks: neighbours, and in turns.
const std::vector<int> kHosts[] = {{0, 1}, {0, 1, 2}, {0, 0, 2, 2}, {0, 1, 0, 1}, {0, 0, 2, 2, 4, 4}};

TEST(SumsInFlight, GiveTheSameBitsInEveryOrder) {
  for (const std::vector<int>& hosts : kHosts)
    for (const std::int64_t parts : {1, 3})
      for (const AllReduceAlgorithm algorithm :
           {AllReduceAlgorithm::one_shot, AllReduceAlgorithm::root, AllReduceAlgorithm::two_shot,
            AllReduceAlgorithm::two_level}) {
        const auto ranks = static_cast<int>(hosts.size());
        const Case first(ranks, parts, 1001, 1), second(ranks, parts, 998, 2);
        SCOPED_TRACE(fmt::format("{}: {} ranks, {} parts", to_string(algorithm), ranks, parts));
        ThreadCommGroup(hosts).run([&](TrackComm& comm) {
          const auto backend = make_cpu_backend({.threads = 1});
          StepState state;
          HostAllReduce all_reduce(comm, *backend, state, parts, 1999, algorithm);
          const bool two_levels = algorithm == AllReduceAlgorithm::two_level;
          ASSERT_EQ(all_reduce.overlaps(1001), !two_levels || ranks >= 4);
          if (!all_reduce.overlaps(1001)) return;
          EXPECT_EQ(all_reduce.overlaps(100000), !two_levels) << "more than the host's memory holds";
          std::mt19937 random(static_cast<unsigned>(comm.rank()));
          for (int turn = 0; turn < 30; turn++) {
            Values out[2] = {Values(1001), Values(998)};
            for (const int number : {0, 1}) {
              const Case& sum = number == 0 ? first : second;
              Values mine = sum.of_rank(comm.rank());
              all_reduce.start(number, parts_of(mine, parts), sum.count, 0.5f, nullptr, out[number].data());
              mine.assign(mine.size(), NAN);  // start() has copied them
              for (auto polls = random() % 4; polls > 0; polls--) all_reduce.poll();
            }
            all_reduce.finish(0);
            ASSERT_EQ(out[0], first.expected);
            all_reduce.finish(1);
            ASSERT_EQ(out[1], second.expected);
          }
          EXPECT_EQ(all_reduce.stats().sync_points, 30u);
          EXPECT_GT(all_reduce.stats().bytes_sent, 30u * 1999 * sizeof(float) / 6);
        });
      }
}

TEST(SumsInFlight, DivergedRanksAreCaught) {
  ThreadCommGroup(2, false).run([&](TrackComm& comm) {
    const auto backend = make_cpu_backend({.threads = 1});
    StepState state;
    state.header = {.step = 1, .digest = comm.rank() == 0 ? 5u : 6u};
    HostAllReduce all_reduce(comm, *backend, state, 1, 8);
    Values values(4, 1), out[2] = {Values(4), Values(4)};
    for (const int number : {0, 1})
      all_reduce.start(number, parts_of(values, 1), 4, 1.0f, nullptr, out[number].data());
    EXPECT_THROW(all_reduce.finish(0), Error);
  });
}

constexpr const char* kModel = R"({
  "name": "halves", "tracks": 4, "layers": 5, "sync_layers": [2, 3, 5],
  "fusion": {"op": "OP", "dispatch_norm": true, "combine_norm": true},
  "hidden_size": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_size": 24,
  "vocab_size": 259, "max_context": 256, "norm_eps": 1e-5, "norm_placement": ["pre", "post"],
  "qk_norm": true, "attention_pattern": ["global_rope", "local_rope"], "attention_window": 9,
  "rope_theta": 500.0, "rope_theta_local": 100.0, "ffn_pattern": ["dense", "moe"],
  "moe": {"experts": 4, "top_k": 3, "ffn_size": 8, "router_logit_cap": null},
  "tie_embeddings": false, "bos_token_id": 256, "eos_token_ids": [257, 3, 50]})";

class Halves : public ::testing::TestWithParam<const char*> {
 protected:
  Halves() {
    std::string text = kModel;
    text.replace(text.find("OP"), 2, GetParam());
    config_ = parse_config(text, "the test's configuration");
    tokenizer_ = make_tokenizer({.kind = "bytes", .model = {}, .file = {}}, config_);
  }

  static std::unique_ptr<Backend> make_backend(bool reference, int threads) {
    if (reference) return std::make_unique<ReferenceBackend>();
    return make_cpu_backend({.threads = threads});
  }

  std::vector<Completion> alone(Task task, bool reference) {
    auto backend = make_backend(reference, 1);
    TrackShard shard = random_shard(config_, 7, DType::float32, 0, config_.tracks, *backend);
    EngineRunner runner(config_, std::move(backend), std::move(shard), &*tokenizer_.tokenizer, options_);
    return runner.run(task, requests_);
  }

  // Over ranks on as many hosts: the completions of each are those of one rank alone.
  void over_hosts(const std::vector<int>& hosts, int threads, Task task, bool reference) {
    const auto ranks = static_cast<int>(hosts.size());
    const std::vector<Completion> expected = alone(task, reference);
    ThreadCommGroup group(hosts);
    group.run([&](TrackComm& comm) {
      const Placement placement = make_placement(ranks, comm.rank(), config_.tracks);
      auto backend = make_backend(reference, threads);
      TrackShard shard =
          random_shard(config_, 7, DType::float32, placement.first_track, placement.tracks, *backend);
      EngineRunner runner(config_, std::move(backend), std::move(shard), comm, placement,
                          &*tokenizer_.tokenizer, options_);
      const std::vector<Completion> actual = runner.run(task, requests_);
      const std::string where = fmt::format("rank {} of {}", comm.rank(), ranks);
      ASSERT_EQ(actual.size(), expected.size());
      for (std::size_t i = 0; i < actual.size(); i++) {
        EXPECT_EQ(actual[i].tokens, expected[i].tokens) << where << ", request " << i;
        EXPECT_EQ(actual[i].logprobs, expected[i].logprobs) << where << ", request " << i;
      }
      EXPECT_EQ(runner.counters().fusions, 3 * runner.counters().steps) << "two halves are one sync point";
    });
    EXPECT_GT(group.transfers(), 2 * 24 * 3) << "some steps ran in halves";
  }

  ModelConfig config_;
  TokenizerChoice tokenizer_;
  EngineOptions options_{.max_batch = 5, .max_rows = 160, .kv_pages = 90};
  // Prompts of up to 200 tokens: in chunks, several to a step, beside rows that decode.
  std::vector<Request> requests_ = mixed_requests(24, 200, 12, 256);
};

TEST_P(Halves, GenerateTheSame) {
  over_hosts({0, 1}, 1, Task::generate, false);
  over_hosts({0, 0, 2, 2}, 1, Task::generate, false);
  over_hosts({0, 1, 2, 3}, 1, Task::generate, true);
}

TEST_P(Halves, ScoreTheSame) {
  over_hosts({0, 1}, 1, Task::score, false);
}

// Tracks of a rank on a thread each.
TEST_P(Halves, WithTracksInParallel) {
  over_hosts({0, 1}, 2, Task::generate, false);
}

INSTANTIATE_TEST_SUITE_P(Fusions, Halves, ::testing::Values("mean", "delta_sum"));

}  // namespace
}  // namespace ptrt::testing
