// Drafts: where they come from, how a scheduler plans and settles them, and that the engine gives the same results
// with right and wrong ones, on the scalar reference, whose rows are independent.
#include <gtest/gtest.h>

#include <memory>

#include "engine_fixture.h"
#include "kernels/cpu/reference_backend.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"
#include "runtime/speculate/ngram_drafter.h"
#include "runtime/speculate/ngram_index.h"
#include "runtime/speculate/oracle_drafter.h"

namespace ptrt::testing {
namespace {

using Tokens = std::vector<std::int32_t>;

TEST(NgramIndex, FindsTheLongestAndLatestOccurrence) {
  NgramIndex index;
  NgramIndex::Match match;
  EXPECT_FALSE(index.find(Tokens{}, match));
  EXPECT_FALSE(index.find(Tokens{1, 2, 3}, match));
  Tokens tokens{1, 2, 3, 9, 2, 3, 8, 1, 2, 3};
  ASSERT_TRUE(index.find(tokens, match));
  EXPECT_EQ(NgramIndex::kLengths[match.place], 3u) << "1 2 3 goes before the later 2 3";
  EXPECT_EQ(match.next, 3u);
  for (const std::int32_t token : {7, 2, 3}) tokens.push_back(token);
  ASSERT_TRUE(index.find(tokens, match));
  EXPECT_EQ(NgramIndex::kLengths[match.place], 2u);
  EXPECT_EQ(match.next, 10u) << "the latest of three";
  tokens.push_back(5);
  EXPECT_FALSE(index.find(tokens, match));
}

TEST(NgramIndex, IsTheSameHoweverOftenItIsAsked) {
  Tokens tokens;
  NgramIndex often;
  for (std::int32_t i = 0; i < 300; i++) {
    tokens.push_back(i * i % 11 % 5);
    NgramIndex once;
    NgramIndex::Match a, b;
    ASSERT_EQ(often.find(tokens, a), once.find(tokens, b)) << i;
    ASSERT_EQ(a.place, b.place) << i;
    ASSERT_EQ(a.next, b.next) << i;
  }
}

Tokens draft(Drafter& drafter, const Tokens& tokens, std::int64_t most) {
  Tokens drafts{99};
  drafter.propose(tokens, 1, most, drafts);
  return drafts;
}

TEST(NgramDrafter, GoesOnAsBefore) {
  NgramDrafter drafter(31);
  const Tokens tokens{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6, 7, 8};
  EXPECT_EQ(draft(drafter, tokens, 3), (Tokens{9, 10, 11}));
  NgramDrafter other(31);
  EXPECT_TRUE(draft(other, {5, 6, 7, 8}, 3).empty());
  NgramDrafter repeats(31);
  for (int i = 0; i < 20; i++) repeats.learn(8, 8);
  EXPECT_EQ(draft(repeats, {1, 2, 1, 2, 1, 2, 1, 2, 1, 2}, 6), (Tokens{1, 2, 1, 2, 1, 2}))
      << "beyond the end it repeats the drafts";
}

// Steps until `output` is complete, with up to 7 drafts in each.
int steps_for(const Tokens& prompt, const Tokens& output) {
  NgramDrafter drafter(7);
  Tokens tokens = prompt;
  int steps = 0;
  for (std::size_t done = 0; done < output.size(); steps++) {
    const Tokens drafts = draft(drafter, tokens, 7);
    std::size_t right = 0;
    while (right < drafts.size() && done + right + 1 < output.size() && drafts[right] == output[done + right])
      right++;
    if (!drafts.empty()) drafter.learn(std::ssize(drafts), static_cast<std::int64_t>(right));
    for (std::size_t i = 0; i <= right; i++) tokens.push_back(output[done++]);
  }
  return steps;
}

// After a token that was changed, left out or added, a step or two later the drafts are right again.
TEST(NgramDrafter, GoesOnBehindEdits) {
  Tokens text(120);
  for (std::size_t i = 0; i < text.size(); i++) text[i] = static_cast<std::int32_t>(i);
  const int plain = steps_for(text, text);
  EXPECT_LT(plain, 30);
  Tokens changed = text;
  for (std::size_t i = 10; i < changed.size(); i += 6) changed[i] = 500;  // no match of more than five tokens
  EXPECT_LT(steps_for(text, changed), plain + 25) << "19 edits";
  Tokens shorter = text, longer = text;
  shorter.erase(shorter.begin() + 50, shorter.begin() + 53);
  longer.insert(longer.begin() + 50, {600, 601, 602});
  EXPECT_LT(steps_for(text, shorter), plain + 6);
  EXPECT_LT(steps_for(text, longer), plain + 9);
}

// Fewer where they are wrong, none in most steps then, and all again where they are right.
TEST(NgramDrafter, AdaptsToWhatIsAccepted) {
  NgramDrafter drafter(7);
  const Tokens tokens{1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4};
  const std::size_t first = draft(drafter, tokens, 31).size();
  EXPECT_GE(first, 2u);
  EXPECT_LT(first, 7u);
  std::int64_t drafted = 0;
  for (int step = 0; step < 400; step++) {
    const auto count = std::ssize(draft(drafter, tokens, 31));
    drafted += count;
    if (count > 0) drafter.learn(count, 0);
  }
  EXPECT_GT(drafted, 4);
  EXPECT_LT(drafted, 24) << "of 400 steps";
  for (int step = 0; step < 400; step++) {
    const auto count = std::ssize(draft(drafter, tokens, 31));
    if (count > 0) drafter.learn(count, count);
  }
  EXPECT_EQ(draft(drafter, tokens, 31).size(), 7u);
}

TEST(OracleDrafter, IsRightAsOftenAsToldTo) {
  const auto known = std::make_shared<KnownOutputs>();
  for (std::int32_t i = 0; i < 4000; i++) (*known)[7].push_back(i % 50);
  Request request;
  request.line = 8;
  EXPECT_EQ(make_oracle_drafters(known, 5, 0.6, 50)(request), nullptr);
  request.line = 7;
  const auto drafter = make_oracle_drafters(known, 5, 0.6, 50)(request);
  Tokens tokens{1};
  std::int64_t right = 0;
  for (std::size_t i = 0; i < 4000; i += 5) {
    const Tokens drafts = draft(*drafter, tokens, 31);
    ASSERT_EQ(drafts.size(), 5u);
    for (std::size_t d = 0; d < 5; d++) {
      right += drafts[d] == (*known)[7][i + d];
      tokens.push_back((*known)[7][i + d]);
    }
  }
  EXPECT_NEAR(static_cast<double>(right) / 4000, 0.6, 0.05);
  EXPECT_TRUE(draft(*drafter, tokens, 31).empty()) << "the output is at its end";
}

// Proposes as many drafts as it may.
class EagerDrafter final : public Drafter {
 public:
  void propose(std::span<const std::int32_t>, std::int64_t, std::int64_t most, Tokens& drafts) override {
    drafts.assign(static_cast<std::size_t>(most), 5);
  }
  void learn(std::int64_t verified, std::int64_t accepted) override {
    learned.push_back({verified, accepted});
  }
  std::vector<std::pair<std::int64_t, std::int64_t>> learned;
};

std::vector<Request> requests_of(std::int64_t count, std::int64_t prompt, std::int64_t max_tokens) {
  Request request;
  request.tokens.assign(static_cast<std::size_t>(prompt), 1);
  request.max_tokens = max_tokens;
  return std::vector<Request>(static_cast<std::size_t>(count), request);
}

class DraftedSteps : public ::testing::Test {
 protected:
  // All sequences are through their prompts then, in one step.
  void start(const SchedulerLimits& limits, const std::vector<Request>& requests) {
    requests_ = requests;
    std::vector<std::int64_t> order;
    for (std::size_t i = 0; i < requests.size(); i++) order.push_back(static_cast<std::int64_t>(i));
    scheduler_ = std::make_unique<Scheduler>(limits, Task::generate, requests_, order);
    scheduler_->set_drafters([this](const Request&) {
      auto drafter = std::make_unique<EagerDrafter>();
      drafters_.push_back(drafter.get());
      return drafter;
    });
    const StepPlan& plan = scheduler_->next_step();
    ASSERT_EQ(plan.draft_rows, 0) << "prompts have no drafts";
    ASSERT_EQ(plan.wanted.size(), requests.size());
    for (const LogitRow& row : plan.wanted) {
      scheduler_->expect_token(*row.sequence, -1);
      row.sequence->tokens.back() = 2;
      sequences_.push_back(row.sequence);
    }
  }
  // The tokens of a step for sequence 0, of which the first `right` drafts were.
  void take(std::int64_t right) {
    scheduler_->expect_token(*sequences_[0], -1);
    sequences_[0]->tokens.back() = right > 0 ? 5 : 3;
    for (std::int64_t i = 0; i < right; i++) sequences_[0]->tokens.push_back(i + 1 < right ? 5 : 3);
    scheduler_->settle_drafts(*sequences_[0]);
  }

  std::vector<Request> requests_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<EagerDrafter*> drafters_;
  std::vector<Sequence*> sequences_;
};

TEST_F(DraftedSteps, FeedDraftsAfterTheTokenAndForgetWrongOnes) {
  start({1, 17, 8, 128, false, 64}, requests_of(1, 10, 40));
  for (const std::int64_t right : {0, 3, 8, 1}) {
    const auto known = static_cast<std::int32_t>(sequences_[0]->tokens.size());
    const StepPlan& plan = scheduler_->next_step();
    EXPECT_EQ(plan.decode_rows, 1);
    ASSERT_EQ(plan.draft_rows, 8) << "half of the rows that are left";
    EXPECT_TRUE(plan.only_decodes());
    EXPECT_TRUE(scheduler_->step_rows().decodes);
    EXPECT_FALSE(plan.has_prefill());
    ASSERT_EQ(plan.wanted.size(), 9u);
    for (std::int32_t r = 0; r < 9; r++) {
      const LogitRow& row = plan.wanted[static_cast<std::size_t>(r)];
      EXPECT_EQ(plan.positions[static_cast<std::size_t>(r)], known - 1 + r);
      EXPECT_EQ(row.position, known - 1 + r);
      EXPECT_EQ(row.draft, r == 0 ? kNoDraft : 5);
    }
    take(right);
    EXPECT_EQ(sequences_[0]->cached, known + right) << "all tokens but the last";
    EXPECT_EQ(drafters_.at(0)->learned.back(), std::make_pair(std::int64_t{8}, right));
  }
  EXPECT_EQ(drafters_.size(), 1u) << "one for the whole sequence";
}

TEST_F(DraftedSteps, StopBeforeTheLastToken) {
  start({1, 64, 8, 128, false, 64}, requests_of(1, 10, 5));
  EXPECT_EQ(scheduler_->next_step().draft_rows, 3) << "tokens 2 to 4; the fifth is sampled and not fed";
  take(2);
  EXPECT_EQ(scheduler_->next_step().draft_rows, 0) << "one token is left to sample";
}

TEST_F(DraftedSteps, TakeNoPageThatAnotherNeeds) {
  // Three pages of 16: one for each sequence, and one that is left for when either needs it.
  start({2, 64, 3, 64, false, 64}, requests_of(2, 10, 20));
  const StepPlan& plan = scheduler_->next_step();
  EXPECT_EQ(plan.draft_rows, 10) << "the pages' remaining cells";
}

TEST_F(DraftedSteps, AreFewInLargeBatches) {
  start({40, 512, 200, 64, false, 64}, requests_of(8, 4, 20));
  EXPECT_EQ(scheduler_->next_step().draft_rows, 32 - 8);
  drafters_.clear(), sequences_.clear();
  start({40, 512, 200, 64, false, 64}, requests_of(40, 4, 20));
  EXPECT_EQ(scheduler_->next_step().draft_rows, 0);
  drafters_.clear(), sequences_.clear();
  start({8, 512, 200, 64, false, 10}, requests_of(8, 4, 20));
  EXPECT_EQ(scheduler_->next_step().draft_rows, 2) << "bounded by the rows whose logits may be wanted";
}

// Plans steps ahead and records them where it may.
class AheadBackend final : public ReferenceBackend {
 public:
  const BackendTraits& traits() const override { return traits_; }

 private:
  BackendTraits traits_ = {.name = "ahead", .records_steps = true, .steps_ahead = 1};
};

class Speculation : public ::testing::Test {
 protected:
  EngineRunner make(std::unique_ptr<Backend> backend, std::int64_t pages, DrafterFactory drafters) {
    TrackShard shard = random_shard(config_, 7, DType::float32, 0, config_.tracks, *backend);
    return {config_,
            std::move(backend),
            std::move(shard),
            tokenizer_.tokenizer.get(),
            {.max_batch = 5, .max_rows = 24, .kv_pages = pages, .drafters = std::move(drafters)}};
  }
  void SetUp() override {
    for (std::size_t i = 0; i < requests_.size(); i++) {
      Request& request = requests_[i];
      request.line = static_cast<std::int64_t>(i);
      request.top_logprobs = request.logprobs && i % 2 == 0 ? 3 : 0;
      if (i % 6 == 5 && request.temperature > 0) request.samples = 2;
      if (i % 4 == 1) request.rules.repetition_penalty = 1.4f, request.rules.frequency_penalty = 0.5f;
      if (i % 4 == 2) request.rules.bad_words = {{5}, {7, 9}, {40, 41, 42}};
      if (i % 5 == 3) request.rules.min_tokens = 4;
    }
    EngineRunner plain = make(std::make_unique<ReferenceBackend>(), 40, nullptr);
    expected_ = plain.run(Task::generate, requests_);
    steps_ = plain.counters().steps;
  }
  // Drafts continue beyond the end of an output, so that sequences end in the middle of right ones.
  DrafterFactory oracle(double acceptance) const {
    const auto known = std::make_shared<KnownOutputs>();
    for (std::size_t i = 0; i < expected_.size(); i++) {
      Tokens& tokens = (*known)[static_cast<std::int64_t>(i)] = expected_[i].tokens;
      tokens.insert(tokens.end(), {1, 2, 3});
    }
    return make_oracle_drafters(known, 4, acceptance, config_.vocab_size);
  }
  RunCounters expect_unchanged(std::unique_ptr<Backend> backend, std::int64_t pages, DrafterFactory drafters,
                               const std::string& where) {
    EngineRunner runner = make(std::move(backend), pages, std::move(drafters));
    const std::vector<Completion> actual = runner.run(Task::generate, requests_);
    expect_same(actual, expected_, where);
    for (std::size_t i = 0; i < actual.size(); i++) {
      EXPECT_EQ(actual[i].logprobs, expected_[i].logprobs) << where;
      EXPECT_EQ(actual[i].top_logprobs, expected_[i].top_logprobs) << where;
      EXPECT_EQ(actual[i].more.size(), expected_[i].more.size()) << where;
      for (std::size_t s = 0; s < actual[i].more.size(); s++)
        EXPECT_EQ(actual[i].more[s].tokens, expected_[i].more[s].tokens) << where;
    }
    return runner.counters();
  }

  ModelConfig config_ = parse_config(kSmallBytesModel, "the test's configuration");
  TokenizerChoice tokenizer_ = make_tokenizer({.kind = "bytes", .model = {}, .file = {}}, config_);
  std::vector<Request> requests_ = mixed_requests(36, 45, 40, 256);
  std::vector<Completion> expected_;
  std::uint64_t steps_ = 0;
};

TEST_F(Speculation, RightAndWrongDraftsChangeNothing) {
  for (const double acceptance : {0.0, 0.3, 0.6, 0.9, 1.0})
    for (const std::int64_t pages : {40, 6}) {
      const auto where = std::to_string(acceptance) + ", pages " + std::to_string(pages);
      const RunCounters counters =
          expect_unchanged(std::make_unique<ReferenceBackend>(), pages, oracle(acceptance), where);
      EXPECT_EQ(counters.preemptions > 0, pages == 6) << where;
      EXPECT_GT(counters.drafted_tokens, 30u) << where;
      if (acceptance == 0) {
        EXPECT_EQ(counters.accepted_tokens, 0u);
      } else {
        EXPECT_GT(counters.accepted_tokens, 0u) << where;
      }
      if (acceptance == 1 && pages == 40) {
        EXPECT_LT(3 * counters.steps, 2 * steps_);
      }
    }
}

TEST_F(Speculation, NgramsChangeNothing) {
  for (Request& request : requests_) {  // prompts that repeat themselves
    const Tokens once = request.tokens;
    if (once.size() < 20) request.tokens.insert(request.tokens.end(), once.begin(), once.end());
  }
  EngineRunner plain = make(std::make_unique<ReferenceBackend>(), 40, nullptr);
  expected_ = plain.run(Task::generate, requests_);
  for (const std::int64_t most : {1, 7}) {
    const RunCounters counters = expect_unchanged(std::make_unique<ReferenceBackend>(), 40,
                                                  make_ngram_drafters(most), "ngram " + std::to_string(most));
    EXPECT_GT(counters.drafted_tokens, 0u);
  }
}

// Such a backend takes each step's tokens before the next one then; steps without drafts are still recorded.
TEST_F(Speculation, ABackendThatRunsAheadWaitsForTokens) {
  const RunCounters counters = expect_unchanged(std::make_unique<AheadBackend>(), 40, oracle(0.6), "ahead");
  EXPECT_GT(counters.accepted_tokens, 0u);
}

}  // namespace
}  // namespace ptrt::testing
