// Requests that begin alike follow each other, and the others keep their order.
#include "launch/jsonl/prefix_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

#include "launch/jsonl/request_dealer.h"

namespace ptrt {
namespace {

// `shared` tokens of a family, and some of the line's own.
std::vector<std::int32_t> prompt_of(std::int64_t line, std::int32_t family, std::int64_t shared) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(shared), 1000 + family);
  for (std::int32_t i = 0; i < 20; i++) tokens.push_back(static_cast<std::int32_t>(10 * line) + i % 7);
  return tokens;
}

std::int64_t take_next(PrefixOrder& order, std::int64_t replica = 0) {
  const auto alike = order.next_alike(replica);
  const std::int64_t line = alike ? *alike : order.next_other(replica);
  order.take(replica, line);
  return line;
}

TEST(PrefixOrder, FamiliesInTurns) {
  PrefixOrder order(1);
  for (std::int64_t line = 0; line < 12; line++)
    order.add(line, prompt_of(line, static_cast<std::int32_t>(line % 3), 100));
  std::vector<std::int64_t> lines;
  for (int i = 0; i < 12; i++) lines.push_back(take_next(order));
  EXPECT_EQ(lines, (std::vector<std::int64_t>{0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11}));
}

TEST(PrefixOrder, WhatSharesNothingKeepsItsOrder) {
  PrefixOrder order(1);
  for (std::int64_t line = 0; line < 20; line++)
    order.add(line, prompt_of(line, 0, line % 2 == 0 ? 0 : 15));  // less than a page
  order.add(20, std::vector<std::int32_t>{1});
  for (std::int64_t line = 0; line < 21; line++) EXPECT_EQ(take_next(order), line);
}

// The longest common beginning counts, also behind one that all have.
TEST(PrefixOrder, FamiliesWithinAFamily) {
  PrefixOrder order(1);
  for (std::int64_t line = 0; line < 8; line++) {
    auto prompt = prompt_of(line, static_cast<std::int32_t>(line % 2), 64);
    prompt.insert(prompt.begin(), 40, 5);
    order.add(line, prompt);
  }
  std::vector<std::int64_t> lines;
  for (int i = 0; i < 8; i++) lines.push_back(take_next(order));
  EXPECT_EQ(lines, (std::vector<std::int64_t>{0, 2, 4, 6, 1, 3, 5, 7}));
}

// A family without end does not hold up what was there when it began.
TEST(PrefixOrder, NobodyIsPassedOverForEver) {
  PrefixOrder order(1);
  std::int64_t last = 0;
  const auto add = [&](std::int32_t family) {
    order.add(last, prompt_of(last, family, 64));
    last++;
  };
  for (const std::int32_t family : {0, 0, 1, 2}) add(family);
  std::vector<std::int64_t> lines;
  for (int i = 0; i < 8; i++) {
    lines.push_back(take_next(order));
    add(0);
  }
  EXPECT_EQ(lines, (std::vector<std::int64_t>{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(PrefixOrder, ReplicasTakeFamiliesOfTheirOwn) {
  PrefixOrder order(2);
  for (std::int64_t line = 0; line < 12; line++)
    order.add(line, prompt_of(line, static_cast<std::int32_t>(line % 2), 100));
  for (int i = 0; i < 6; i++) {
    EXPECT_EQ(take_next(order, 0) % 2, 0);
    EXPECT_EQ(take_next(order, 1) % 2, 1);
  }
}

class DealerByPrefix : public ::testing::Test {
 protected:
  // The lines in the order in which they are dealt, a batch at a time.
  std::vector<std::int64_t> deal(std::int64_t count, std::int32_t families,
                                 const RequestDealer::Options& options) {
    std::int64_t read = 0;
    RequestDealer dealer(
        [&](StreamedLine& line) {
          if (read == count) return Supply::end;
          line = {read, {}, {}};
          line.request.line = read;
          line.request.tokens = prompt_of(read, static_cast<std::int32_t>(read % families), 100);
          line.request.max_tokens = 1;
          line.request.rules.output = output_;
          most_held_ = std::max(most_held_, ++read - static_cast<std::int64_t>(lines_.size()));
          return Supply::line;
        },
        options, {});
    std::vector<StreamedLine> rejected;
    while (!dealer.done()) {
      std::vector<std::pair<std::int64_t, std::int64_t>> given;
      while (const auto some = dealer.next({}, rejected))
        for (const HeldLine& line : some->requests) {
          lines_.push_back(line->number);
          given.emplace_back(some->replica, line->number);
        }
      for (const auto& [replica, line] : given) dealer.finished(replica, line, {});
    }
    EXPECT_EQ(std::set<std::int64_t>(lines_.begin(), lines_.end()).size(), static_cast<std::size_t>(count));
    return lines_;
  }
  std::int64_t changes(std::int64_t families) const {
    std::int64_t changes = 0;
    for (std::size_t i = 1; i < lines_.size(); i++)
      changes += lines_[i] % families != lines_[i - 1] % families;
    return changes;
  }

  std::vector<std::int64_t> lines_;
  std::int64_t most_held_ = 0;
  OutputConstraint output_;  // of every line
};

TEST_F(DealerByPrefix, BringsAlikeOnesTogetherWithinAWindow) {
  deal(2000, 8, {.max_batch = 4, .requests = 2000, .by_prefix = true, .most_lines = 200});
  EXPECT_LT(changes(8), 2000 / 20);
  EXPECT_LE(most_held_, 200);
}

TEST_F(DealerByPrefix, BoundsTheTokensItHolds) {
  deal(2000, 8, {.max_batch = 4, .requests = 2000, .by_prefix = true, .most_tokens = 12000});
  EXPECT_LE(most_held_, 101);
}

TEST_F(DealerByPrefix, BoundsTheAutomataItHolds) {
  ByteAutomaton automaton;
  automaton.edges.resize(160);
  output_ = {std::make_shared<const ByteAutomaton>(automaton)};
  const auto tokens = static_cast<std::int64_t>(output_.automaton->bytes() / 4);
  EXPECT_GT(tokens, 450);
  deal(500, 8, {.max_batch = 4, .requests = 500, .by_prefix = true, .most_tokens = 12000});
  EXPECT_LE(most_held_, 12000 / (100 + tokens) + 2);
}

TEST_F(DealerByPrefix, StartsAtOnce) {
  deal(100, 4, {.max_batch = 4, .requests = 100, .by_prefix = true});
  EXPECT_EQ(std::vector<std::int64_t>(lines_.begin(), lines_.begin() + 4),
            (std::vector<std::int64_t>{0, 1, 2, 3}))
      << "nothing is read ahead for the first batch";
}

TEST_F(DealerByPrefix, FilesThatShareNothingKeepTheirOrder) {
  deal(500, 500, {.max_batch = 8, .requests = 500, .by_prefix = true});
  EXPECT_TRUE(std::ranges::is_sorted(lines_));
}

}  // namespace
}  // namespace ptrt
