// What --trace records, and that it changes nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <thread>

#include "engine_fixture.h"
#include "kernels/make_cpu_backend.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"
#include "runtime/trace/traced_backend.h"
#include "runtime/trace/tracer.h"

namespace ptrt::testing {
namespace {

TEST(Tracer, KeepsTheFirstEvents) {
  Tracer tracer(3);
  { const TraceSpan nothing(nullptr, "nothing"); }
  for (int i = 0; i < 5; i++) tracer.add("e", i, i + 1, "n", i);
  ASSERT_EQ(tracer.events().size(), 3u);
  EXPECT_EQ(tracer.dropped(), 2u);
  EXPECT_EQ(tracer.events()[2].value, 2);
  EXPECT_STREQ(tracer.events()[2].detail, "n");
}

TEST(Tracer, TellsThreadsApart) {
  Tracer tracer(16);
  { const TraceSpan span(&tracer, "here"); }
  std::thread([&] { const TraceSpan span(&tracer, "there"); }).join();
  ASSERT_EQ(tracer.events().size(), 2u);
  EXPECT_NE(tracer.events()[0].thread, tracer.events()[1].thread);
  for (const TraceEvent& event : tracer.events()) EXPECT_LE(event.start_ns, event.end_ns);
}

class TracedEngine : public ::testing::TestWithParam<int> {};

// With tracks in parallel each lane is recorded on its thread.
TEST_P(TracedEngine, GivesTheSameResults) {
  const ModelConfig config = parse_config(kSmallBytesModel, "the test's configuration");
  const TokenizerChoice tokenizer = make_tokenizer({.kind = "bytes", .model = {}, .file = {}}, config);
  const std::vector<Request> requests = mixed_requests(12, 45, 20, 256);
  const EngineOptions options{.max_batch = 5, .max_rows = 24, .kv_pages = 40};
  const auto make = [&](std::unique_ptr<Backend> backend) {
    TrackShard shard = random_shard(config, 7, DType::float32, 0, config.tracks, *backend);
    return EngineRunner(config, std::move(backend), std::move(shard), tokenizer.tokenizer.get(), options);
  };
  const auto expected = make(make_cpu_backend({.threads = GetParam()})).run(Task::generate, requests);

  Tracer tracer(1 << 20);
  const auto plain = make_cpu_backend({.threads = GetParam()});
  EngineRunner traced = make(make_traced_backend(*plain, tracer));
  const auto actual = traced.run(Task::generate, requests);
  expect_same(actual, expected, "traced");
  for (std::size_t i = 0; i < actual.size(); i++) EXPECT_EQ(actual[i].logprobs, expected[i].logprobs);

  std::map<std::string, std::uint64_t> count;
  for (const TraceEvent& event : tracer.events()) count[event.name]++;
  const std::uint64_t steps = traced.counters().steps;
  EXPECT_EQ(count["embed"], steps);
  EXPECT_GT(count["sample"], 0u);
  const bool lanes = plain->traits().prefers_track_parallel(config.tracks);
  const auto layers = static_cast<std::uint64_t>(config.layers * (lanes ? config.tracks : 1));
  EXPECT_EQ(count["attention"], steps * layers);
  EXPECT_EQ(count["tracks"] > 0, lanes);
  EXPECT_EQ(lanes, GetParam() == 2) << "else this tests nothing";
}

INSTANTIATE_TEST_SUITE_P(Threads, TracedEngine, ::testing::Values(1, 2));

}  // namespace
}  // namespace ptrt::testing
