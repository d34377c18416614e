// Sampling rules through the engine.
#include "engine_steps_fixture.h"

namespace ptrt::testing {
namespace {

class EngineRules : public EngineSteps {};

// Rules that depend on the output have the tokens of steps in flight taken first; others run ahead.
TEST_F(EngineRules, TokensMayBeTakenAStepLate) {
  const std::vector<Request> without = requests_;
  for (const bool of_output : {true, false}) {
    requests_ = without;
    add_rules(requests_, of_output);
    EngineRunner plain = make(std::make_unique<ReferenceBackend>(), 40);
    const std::vector<Completion> expected = plain.run(Task::generate, requests_);
    for (const std::int64_t pages : {40, 6}) {
      auto backend = std::make_unique<RunAheadBackend>(true);
      const RunAheadBackend& ahead = *backend;
      EngineRunner runner = make(std::move(backend), pages);
      const std::vector<Completion> actual = runner.run(Task::generate, requests_);
      expect_same(actual, expected, "pages " + std::to_string(pages));
      for (std::size_t i = 0; i < actual.size(); ++i) {
        EXPECT_EQ(actual[i].logprobs, expected[i].logprobs);
        EXPECT_EQ(actual[i].top_logprobs, expected[i].top_logprobs);
      }
      EXPECT_EQ(runner.counters().preemptions > 0, pages == 6);
      EXPECT_TRUE(of_output || ahead.most_queued_ == 2u);
      EXPECT_TRUE(ahead.drained());
    }
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const Request& request = requests_[i];
      EXPECT_GE(std::ssize(expected[i].tokens), request.rules.min_tokens);
      ASSERT_EQ(expected[i].top_logprobs.size(), request.top_logprobs > 0 ? expected[i].tokens.size() : 0);
      for (const std::vector<TokenLogprob>& top : expected[i].top_logprobs)
        EXPECT_EQ(std::ssize(top), request.top_logprobs);
      for (const std::int32_t token : expected[i].tokens)
        EXPECT_TRUE(request.rules.allowed.empty() || token % 2 == 0);
    }
  }
}

// A request whose masks leave no token fails alone.
TEST_F(EngineRules, MasksThatLeaveNoToken) {
  for (Request& request : requests_) request.stop.clear(), request.ignore_eos = true;
  const std::vector<Completion> expected =
      make(std::make_unique<ReferenceBackend>(), 40).run(Task::generate, requests_);
  requests_[5].rules.allowed = {65};
  requests_[5].rules.bad_words = {{65, 65, 65}};
  requests_[7].rules.allowed = {257};
  requests_[7].rules.min_tokens = 1;
  for (const bool ahead : {false, true}) {
    std::unique_ptr<Backend> backend = std::make_unique<ReferenceBackend>();
    if (ahead) backend = std::make_unique<RunAheadBackend>(true);
    const std::vector<Completion> actual = make(std::move(backend), 40).run(Task::generate, requests_);
    for (std::size_t i = 0; i < actual.size(); ++i) {
      EXPECT_EQ(actual[i].none_allowed_at, i == 5 ? 2 : i == 7 ? 0 : -1);
      EXPECT_EQ(actual[i].failed(), i == 5 || i == 7);
      EXPECT_EQ(actual[i].tokens, actual[i].failed() ? std::vector<std::int32_t>() : expected[i].tokens);
    }
  }
}

}  // namespace
}  // namespace ptrt::testing
