// All ways of the engine to run the same requests give the same results: tokens taken at once or a step late,
// padded steps or not, pages for all or for few. Runs on the scalar reference, whose rows are independent.
#include "runtime/serving/engine.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine_steps_fixture.h"
#include "kernels/base/error.h"
#include "runtime/model/step_recorder.h"

namespace ptrt::testing {
namespace {

TEST_F(EngineSteps, TokensMayBeTakenAStepLate) {
  EngineRunner plain = make(std::make_unique<ReferenceBackend>(), 40);
  const std::vector<Completion> expected = plain.run(Task::generate, requests_);
  const auto ended = [&](FinishReason reason) {
    return std::ranges::count(expected, reason, &Completion::finish_reason);
  };
  ASSERT_GT(ended(FinishReason::stop), 4);
  ASSERT_GT(ended(FinishReason::length), 4);
  for (const bool records : {false, true})
    for (const std::int64_t pages : {40, 6}) {  // 6: as many as the longest request needs
      auto backend = std::make_unique<RunAheadBackend>(records);
      const RunAheadBackend& ahead = *backend;
      EngineRunner runner = make(std::move(backend), pages);
      const auto where = "pages " + std::to_string(pages) + (records ? ", recorded" : "");
      const std::vector<Completion> actual = runner.run(Task::generate, requests_);
      expect_same(actual, expected, where);
      for (std::size_t i = 0; i < actual.size(); ++i)
        EXPECT_EQ(actual[i].logprobs, expected[i].logprobs) << where;
      EXPECT_EQ(runner.counters().decode_tokens, plain.counters().decode_tokens);
      EXPECT_EQ(runner.counters().fusions, 2 * runner.counters().steps);
      EXPECT_EQ(runner.counters().preemptions > 0, pages == 6) << where;
      EXPECT_EQ(ahead.most_queued_, 2u);
      EXPECT_GT(ahead.placeholders_, 50u);
      EXPECT_TRUE(ahead.drained());
      for (const std::int64_t rows : ahead.recorded_rows_) EXPECT_EQ(rows, recorded_rows(rows, 5));
      EXPECT_EQ(ahead.recorded_rows_.empty(), !records);
    }
}

// Each list is descending, and says of a token of the prompt what its own log-probability says.
void check_alternatives(const Completion& completion, const Request& request) {
  const auto& lists = completion.prompt_top_logprobs;
  ASSERT_EQ(lists.size(), request.prompt_logprobs > 0 ? request.tokens.size() - 1 : 0);
  for (std::size_t t = 0; t < lists.size(); ++t) {
    ASSERT_EQ(std::ssize(lists[t]), request.prompt_logprobs);
    EXPECT_TRUE(std::ranges::is_sorted(lists[t], std::greater<>(), &TokenLogprob::logprob));
    for (const TokenLogprob& other : lists[t])
      if (other.token == request.tokens[t + 1]) {
        EXPECT_EQ(other.logprob, completion.prompt_logprobs[t]);
      }
    EXPECT_GE(lists[t].front().logprob, completion.prompt_logprobs[t]);
  }
}

// Prompts are scored as `score` scores them, and what is generated after them stays the same; however steps are
// run, and though prompts are computed again after preemptions.
TEST_F(EngineSteps, PromptLogProbabilities) {
  std::vector<Request> asking = requests_;
  for (std::size_t i = 0; i < asking.size(); ++i) {
    if (i % 4 != 3) asking[i].prompt_logprobs = static_cast<std::int64_t>(i % 4);
    if (i % 4 == 1 || i % 8 == 7) asking[i].max_tokens = 0;  // the latter ask nothing of the model
  }
  const std::vector<Completion> scored =
      make(std::make_unique<ReferenceBackend>(), 40).run(Task::score, requests_);
  const std::vector<Completion> plain =
      make(std::make_unique<ReferenceBackend>(), 40).run(Task::generate, requests_);
  for (const bool ahead : {false, true})
    for (const std::int64_t pages : {40, 6}) {
      std::unique_ptr<Backend> backend = std::make_unique<ReferenceBackend>();
      if (ahead) backend = std::make_unique<RunAheadBackend>(true);
      EngineRunner runner = make(std::move(backend), pages);
      const std::vector<Completion> actual = runner.run(Task::generate, asking);
      EXPECT_EQ(runner.counters().preemptions > 0, pages == 6);
      for (std::size_t i = 0; i < actual.size(); ++i) {
        SCOPED_TRACE(fmt::format("request {}, {} pages, ahead {}", i, pages, ahead));
        EXPECT_EQ(actual[i].prompt_logprobs,
                  asking[i].prompt_logprobs < 0 ? std::vector<float>{} : scored[i].logprobs);
        check_alternatives(actual[i], asking[i]);
        EXPECT_EQ(actual[i].prompt_tokens, std::ssize(asking[i].tokens));
        if (asking[i].max_tokens == 0) {
          EXPECT_TRUE(actual[i].tokens.empty());
          EXPECT_EQ(actual[i].finish_reason, FinishReason::length);
          continue;
        }
        EXPECT_EQ(actual[i].tokens, plain[i].tokens);
        EXPECT_EQ(actual[i].logprobs, plain[i].logprobs);
      }
    }
}

TEST_F(EngineSteps, RequestsThatArriveLater) {
  for (std::size_t i = 0; i < requests_.size(); ++i) requests_[i].arrival_s = 0.002 * static_cast<double>(i);
  const std::vector<Completion> expected =
      make(std::make_unique<ReferenceBackend>(), 40).run(Task::generate, requests_);
  expect_same(make(std::make_unique<RunAheadBackend>(true), 40).run(Task::generate, requests_), expected,
              "arrivals");
}

// What was asked for when the run is to end is still taken.
TEST_F(EngineSteps, StopsInOrder) {
  auto backend = std::make_unique<RunAheadBackend>(true);
  const RunAheadBackend& ahead = *backend;
  TrackShard shard = random_shard(config_, 7, DType::float32, 0, config_.tracks, *backend);
  const auto comm = make_solo_track_comm();
  Engine engine(config_, config_, shard, *backend, {*comm, *comm}, make_placement(1, 0, 2),
                tokenizer_.tokenizer.get(), {.max_batch = 5, .max_rows = 24, .kv_pages = 40});
  std::vector<std::int64_t> order(requests_.size());
  std::iota(order.begin(), order.end(), 0);
  int asked = 0;
  std::size_t completed = 0;
  EXPECT_FALSE(engine.run(
      Task::generate, requests_, order,
      {.completed = [&](Completion&&) { ++completed; }, .stop_requested = [&] { return ++asked == 12; }}));
  EXPECT_TRUE(ahead.drained());
  EXPECT_EQ(engine.counters().steps, 12u);
  EXPECT_LT(completed, requests_.size());
}

TEST_F(EngineSteps, ScoresAtOnce) {
  for (Request& request : requests_) {
    request.tokens.push_back(65);  // at least two
    request.max_tokens = 0;
  }
  EngineRunner plain = make(std::make_unique<ReferenceBackend>(), 40),
               ahead = make(std::make_unique<RunAheadBackend>(true), 6);
  const auto expected = plain.run(Task::score, requests_), actual = ahead.run(Task::score, requests_);
  for (std::size_t i = 0; i < requests_.size(); ++i) EXPECT_EQ(actual[i].logprobs, expected[i].logprobs);
}

// What stands before `score_from` is read and not scored; the rest has the bits it has in the whole text, in
// prefill chunks too.
TEST_F(EngineSteps, ScoresWhatFollowsAContext) {
  for (Request& request : requests_) {
    request.tokens.push_back(65);
    request.max_tokens = 0;
  }
  const auto whole = make(std::make_unique<ReferenceBackend>(), 40).run(Task::score, requests_);
  for (std::size_t i = 0; i < requests_.size(); ++i)
    requests_[i].score_from = 1 + static_cast<std::int64_t>(i) % (std::ssize(requests_[i].tokens) - 1);
  const auto parts = make(std::make_unique<ReferenceBackend>(), 40).run(Task::score, requests_);
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    const auto from = whole[i].logprobs.begin() + requests_[i].score_from - 1;
    EXPECT_EQ(parts[i].logprobs, std::vector<float>(from, whole[i].logprobs.end())) << "request " << i;
  }
}

// Greedy output is greedy as a continuation; with another token anywhere in it, it is not.
TEST_F(EngineSteps, TellsGreedyContinuations) {
  for (Request& request : requests_) request.temperature = 0, request.ignore_eos = true, request.stop.clear();
  const auto generated = make(std::make_unique<ReferenceBackend>(), 40).run(Task::generate, requests_);
  std::vector<Request> texts;
  std::vector<bool> greedy;
  for (std::size_t i = 0; i < requests_.size(); ++i)
    for (const std::size_t changed : {std::size_t{0}, generated[i].tokens.size() - 1, std::size_t{1000}}) {
      Request& text = texts.emplace_back();
      text.tokens = requests_[i].tokens;
      text.score_from = std::ssize(text.tokens);
      text.tokens.insert(text.tokens.end(), generated[i].tokens.begin(), generated[i].tokens.end());
      greedy.push_back(changed == 1000);
      if (changed != 1000) text.tokens[requests_[i].tokens.size() + changed] ^= 1;
    }
  const auto scored = make(std::make_unique<ReferenceBackend>(), 40).run(Task::score, texts);
  for (std::size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(scored[i].is_greedy, greedy[i]) << "text " << i;
}

class PoisonedBackend final : public ReferenceBackend {
 public:
  explicit PoisonedBackend(std::int32_t poison) : poison_(poison) {}
  void embed(const Weight& table, std::span<const std::int32_t> tokens, float scale, Tensor x) override {
    ReferenceBackend::embed(table, tokens, scale, x);
    poison_rows(tokens, poison_, x);
  }

 private:
  std::int32_t poison_;
};

class EngineNotFinite : public EngineSteps {
 protected:
  static constexpr std::int32_t kPoison = 31;
  static std::int64_t first_poison(const std::vector<std::int32_t>& tokens) {
    const auto at = std::ranges::find(tokens, kPoison);
    return at == tokens.end() ? -1 : at - tokens.begin();
  }
  // What the request must end with, if it ends so without poison.
  static std::int64_t expected_failure(Task task, const Request& request, const Completion& sound) {
    if (const std::int64_t at = first_poison(request.tokens); at >= 0) {
      if (task == Task::generate) return 0;
      return at + 1 < std::ssize(request.tokens) ? at + 1 : -1;
    }
    const std::int64_t at = first_poison(sound.tokens);
    return at >= 0 && at + 1 < std::ssize(sound.tokens) ? at + 1 : -1;
  }
};

// Requests that meet NaNs fail, at the first token they cannot have; every other one is as without them,
// also where pages with NaNs are used again.
TEST_F(EngineNotFinite, FailsAloneAndGivesItsPagesBack) {
  for (const Task task : {Task::generate, Task::score})
    for (const std::int64_t pages : {40, 6}) {
      if (task == Task::score)
        for (Request& request : requests_) {
          request.tokens.push_back(65);
          request.max_tokens = 0;
        }
      const auto sound = make(std::make_unique<ReferenceBackend>(), pages).run(task, requests_);
      const auto actual = make(std::make_unique<PoisonedBackend>(kPoison), pages).run(task, requests_);
      std::int64_t in_prompt = 0, later = 0, unharmed = 0;
      for (std::size_t i = 0; i < requests_.size(); ++i) {
        const std::int64_t failure = expected_failure(task, requests_[i], sound[i]);
        EXPECT_EQ(actual[i].not_finite_at, failure) << "request " << i;
        if (actual[i].failed()) {
          EXPECT_TRUE(actual[i].tokens.empty() && actual[i].logprobs.empty() && actual[i].text.empty());
          (first_poison(requests_[i].tokens) >= 0 ? in_prompt : later)++;
        } else {
          EXPECT_EQ(actual[i].tokens, sound[i].tokens) << "request " << i;
          EXPECT_EQ(actual[i].text, sound[i].text);
          EXPECT_EQ(actual[i].logprobs, sound[i].logprobs);
          ++unharmed;
        }
      }
      EXPECT_GT(in_prompt, 1);
      EXPECT_GT(unharmed, 1);
      if (task == Task::generate) {
        EXPECT_GT(later, 0) << "no request generates the token: choose another";
      }
    }
}

// Where the prompt is scored, the failure is the token of the prompt that cannot be.
TEST_F(EngineNotFinite, InAScoredPrompt) {
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    requests_[i].prompt_logprobs = 0;
    if (i % 2 == 0) requests_[i].max_tokens = 0;
  }
  const auto sound = make(std::make_unique<ReferenceBackend>(), 40).run(Task::generate, requests_);
  std::int64_t in_prompt = 0;
  for (const std::int64_t pages : {40, 6}) {
    const auto actual =
        make(std::make_unique<PoisonedBackend>(kPoison), pages).run(Task::generate, requests_);
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      const auto& tokens = requests_[i].tokens;
      const std::int64_t at = first_poison(tokens);
      const bool fails = at >= 0 && at + 1 < std::ssize(tokens);
      EXPECT_EQ(actual[i].not_finite_in_prompt, fails) << "request " << i;
      if (fails) {
        EXPECT_EQ(actual[i].not_finite_at, at + 1);
        EXPECT_TRUE(actual[i].prompt_logprobs.empty());
        in_prompt++;
      } else if (!actual[i].failed()) {
        EXPECT_EQ(actual[i].prompt_logprobs, sound[i].prompt_logprobs);
        EXPECT_EQ(actual[i].tokens, sound[i].tokens);
      }
    }
  }
  EXPECT_GT(in_prompt, 2);
}

TEST_F(EngineNotFinite, StepsAheadAreDropped) {
  const auto now = make(std::make_unique<PoisonedBackend>(kPoison), 40).run(Task::generate, requests_);
  for (const bool records : {false, true}) {
    auto backend = std::make_unique<RunAheadBackend>(records, kPoison);
    const RunAheadBackend& ahead = *backend;
    EngineRunner runner = make(std::move(backend), 6);
    const auto later = runner.run(Task::generate, requests_);
    EXPECT_TRUE(ahead.drained());
    for (std::size_t i = 0; i < now.size(); ++i) {
      EXPECT_EQ(later[i].not_finite_at, now[i].not_finite_at) << "request " << i;
      EXPECT_EQ(later[i].tokens, now[i].tokens) << "request " << i;
      EXPECT_EQ(later[i].logprobs, now[i].logprobs) << "request " << i;
    }
  }
}

TEST(StepRecorder, FewSizes) {
  const std::vector<std::int64_t> filled{1, 2, 4, 4, 8, 8, 8, 8, 16, 16};
  for (std::int64_t rows = 1; rows <= 10; ++rows)
    EXPECT_EQ(recorded_rows(rows, 100), filled[static_cast<std::size_t>(rows - 1)]);
  for (std::int64_t rows = 1; rows <= 100; ++rows) {
    EXPECT_GE(recorded_rows(rows, 100), rows);
    EXPECT_LT(recorded_rows(rows, 100), rows + 8);
  }
  EXPECT_EQ(recorded_rows(17, 100), 24);
  EXPECT_EQ(recorded_rows(18, 20), 20);
  EXPECT_EQ(recorded_rows(3, 3), 3);
}

}  // namespace
}  // namespace ptrt::testing
