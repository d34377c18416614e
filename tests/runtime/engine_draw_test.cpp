// An engine that draws its requests while it runs, against one that has them from the start.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>

#include "engine_fixture.h"
#include "kernels/base/error.h"
#include "kernels/cpu/reference_backend.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"
#include "runtime/requests/request_bytes.h"
#include "thread_comm.h"

namespace ptrt::testing {
namespace {

// Gives a few requests at some calls and none at others; the last call may bring some, too.
class ScriptedSource final : public RequestSource {
 public:
  explicit ScriptedSource(std::span<const Request> requests) : left_(requests) {}

  bool take(std::vector<Request>& requests, std::chrono::milliseconds patience) override {
    calls_++;
    waited_ = waited_ || patience.count() > 0;
    const std::size_t count = std::min<std::size_t>(calls_ % 3 == 0 ? calls_ % 5 : 0, left_.size());
    requests.insert(requests.end(), left_.begin(), left_.begin() + static_cast<std::ptrdiff_t>(count));
    left_ = left_.subspan(count);
    return !left_.empty();
  }
  bool waited() const { return waited_; }

 private:
  std::span<const Request> left_;
  std::size_t calls_ = 0;
  bool waited_ = false;
};

class EngineDraw : public ::testing::Test {
 protected:
  EngineDraw() {
    for (std::size_t i = 0; i < requests_.size(); i++) requests_[i].line = static_cast<std::int64_t>(i);
  }

  // What each rank of a replica has completed, by line.
  std::vector<std::vector<Completion>> run(Task task, int ranks,
                                           const std::function<RequestSource*()>& source) {
    ThreadCommGroup group(ranks);
    std::vector<std::vector<Completion>> all(static_cast<std::size_t>(ranks));
    group.run([&](TrackComm& comm) {
      const Placement placement = make_placement(ranks, comm.rank(), config_.tracks);
      ReferenceBackend backend;
      const TrackShard shard =
          random_shard(config_, 7, DType::float32, placement.first_track, placement.tracks, backend);
      Engine engine(config_, config_, shard, backend, {comm, comm}, placement, tokenizer_.tokenizer.get(),
                    {.max_batch = 5, .max_rows = 24, .kv_pages = 12});
      auto& mine = all[static_cast<std::size_t>(comm.rank())];
      mine.resize(requests_.size());
      std::vector<int> times(requests_.size());
      Engine::Hooks hooks;
      hooks.completed = [&](Completion&& done) {
        times[static_cast<std::size_t>(done.request)]++;
        mine[static_cast<std::size_t>(done.request)] = std::move(done);
      };
      EXPECT_TRUE(engine.run(task, comm.rank() == 0 ? source() : nullptr, hooks));
      EXPECT_EQ(std::ranges::count(times, 1), std::ssize(times));
    });
    return all;
  }

  ModelConfig config_ = parse_config(kSmallBytesModel, "the test's configuration");
  TokenizerChoice tokenizer_ = make_tokenizer({.kind = "bytes", .model = {}, .file = {}}, config_);
  std::vector<Request> requests_ = mixed_requests(30, 45, 20, 256);
};

TEST_F(EngineDraw, GivesTheResultsOfARunThatKnowsAll) {
  auto backend = std::make_unique<ReferenceBackend>();
  TrackShard shard = random_shard(config_, 7, DType::float32, 0, config_.tracks, *backend);
  EngineRunner known(config_, std::move(backend), std::move(shard), tokenizer_.tokenizer.get(),
                     {.max_batch = 5, .max_rows = 24, .kv_pages = 40});
  for (const Task task : {Task::generate, Task::score}) {
    if (task == Task::score)
      for (Request& request : requests_) request.max_tokens = 0;  // some have one token: no step
    const std::vector<Completion> expected = known.run(task, requests_);
    for (const int ranks : {1, 2}) {
      ScriptedSource source(requests_);
      for (const auto& actual : run(task, ranks, [&] { return &source; }))
        for (std::size_t i = 0; i < expected.size(); i++) {
          const auto where = std::to_string(ranks) + " ranks, request " + std::to_string(i);
          EXPECT_EQ(actual[i].tokens, expected[i].tokens) << where;
          EXPECT_EQ(actual[i].logprobs, expected[i].logprobs) << where;
          EXPECT_EQ(actual[i].text, expected[i].text) << where;
          EXPECT_EQ(actual[i].finish_reason, expected[i].finish_reason) << where;
          EXPECT_EQ(actual[i].prompt_tokens, std::ssize(requests_[i].tokens)) << where;
        }
      EXPECT_TRUE(source.waited()) << "at the start at least, there was nothing to do";
    }
  }
}

TEST_F(EngineDraw, NothingToDo) {
  requests_.clear();
  for (const int ranks : {1, 2}) {
    ScriptedSource source(requests_);
    run(Task::generate, ranks, [&] { return &source; });
  }
}

// A field that is added to a request and not to its bytes comes back as its default here.
TEST(RequestBytes, KeepEveryField) {
  for (const Request& plain : mixed_requests(12, 9, 20, 256)) {
    Request request = plain;
    request.line = 1ll << 40;
    request.score_from = 3;
    request.arrival_s = 0.25;
    request.min_p = 0.125f;
    request.samples = 4;
    request.rules = {
        1.5f,
        0.5f,
        -0.25f,
        {{3, 1.5f}, {9, -100.0f}},
        {1, 2, 9},
        {{7}, {8, 9}},
        5,
        {std::make_shared<ByteAutomaton>(ByteAutomaton{3, 2, {{0, 1, 5, 7}, {1, 2, 255, 255}}, {{1, 0}}})}};
    request.stop_tokens = {4, 6};
    request.include_stop = request.ignore_eos = request.logprobs = true;
    request.top_logprobs = 20;
    request.prompt_logprobs = 0;
    std::string bytes;
    for (const Request& each : {request, plain, request}) append_request(bytes, each);
    ByteReader reader(bytes);
    for (const Request& each : {request, plain, request}) EXPECT_EQ(take_request(reader), each);
    EXPECT_TRUE(reader.empty());
  }
}

TEST(RequestBytes, AMessageCutShortIsAnError) {
  std::string bytes;
  append_request(bytes, mixed_requests(1, 9, 20, 256)[0]);
  bytes.pop_back();
  ByteReader reader(bytes);
  EXPECT_THROW(take_request(reader), Error);
}

}  // namespace
}  // namespace ptrt::testing
