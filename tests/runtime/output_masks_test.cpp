// Masks of tokens against a plain simulation of the automaton.
#include "runtime/grammar/output_masks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>

#include "kernels/logit_edits.h"

namespace ptrt {
namespace {

using Set = std::set<std::int32_t>;

// Ids are indices into a list of texts.
class ListTokenizer final : public Tokenizer {
 public:
  explicit ListTokenizer(std::vector<std::string> texts) : texts_(std::move(texts)) {}
  std::vector<std::int32_t> encode(std::string_view) const override { return {}; }
  std::string token_bytes(std::int32_t id) const override { return texts_[static_cast<std::size_t>(id)]; }
  std::int64_t size() const { return std::ssize(texts_); }

 private:
  std::vector<std::string> texts_;
};

Set with_jumps(const ByteAutomaton& automaton, Set states) {
  for (std::size_t before = 0; before != states.size();) {
    before = states.size();
    for (const auto& jump : automaton.jumps)
      if (states.contains(jump.from)) states.insert(jump.to);
  }
  return states;
}

Set after(const ByteAutomaton& automaton, const std::string& text) {
  Set states = with_jumps(automaton, {0});
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    Set next;
    for (const auto& edge : automaton.edges)
      if (states.contains(edge.from) && byte >= edge.low && byte <= edge.high) next.insert(edge.to);
    states = with_jumps(automaton, next);
  }
  return states;
}

// Arrows from which the accepting state cannot be reached are left out, as the contract of ByteAutomaton says.
std::shared_ptr<const ByteAutomaton> random_automaton(std::mt19937& random) {
  ByteAutomaton automaton;
  automaton.states = 2 + static_cast<std::int32_t>(random() % 9);
  automaton.accept = automaton.states - 1;
  const auto state = [&] { return static_cast<std::int32_t>(random() % std::uint32_t(automaton.states)); };
  for (int i = 0; i < 14; i++) {
    const auto low = static_cast<std::int16_t>('a' + random() % 4);
    automaton.edges.push_back({state(), state(), low, static_cast<std::int16_t>(low + random() % 2)});
  }
  for (int i = 0; i < 3; i++) automaton.jumps.push_back({state(), state()});
  Set useful = {automaton.accept};
  for (std::size_t before = 0; before != useful.size();) {
    before = useful.size();
    for (const auto& arrow : automaton.edges)
      if (useful.contains(arrow.to)) useful.insert(arrow.from);
    for (const auto& arrow : automaton.jumps)
      if (useful.contains(arrow.to)) useful.insert(arrow.from);
  }
  std::erase_if(automaton.edges, [&](const auto& edge) { return !useful.contains(edge.to); });
  std::erase_if(automaton.jumps, [&](const auto& jump) { return !useful.contains(jump.to); });
  return std::make_shared<const ByteAutomaton>(automaton);
}

// Of one text.
std::shared_ptr<const ByteAutomaton> automaton_of(const std::string& text) {
  ByteAutomaton automaton{.states = 1, .accept = 0, .edges = {}, .jumps = {}};
  for (const char c : text) {
    automaton.edges.push_back({automaton.accept, automaton.states, c, c});
    automaton.accept = automaton.states++;
  }
  return std::make_shared<const ByteAutomaton>(std::move(automaton));
}

// Texts of a and b whose last but `count` is an a: made deterministic, it has more than 2^count states.
std::shared_ptr<const ByteAutomaton> last_but(std::int16_t count) {
  ByteAutomaton automaton{.states = count + 2, .accept = count + 1, .edges = {}, .jumps = {}};
  automaton.edges = {{0, 0, 'a', 'b'}, {0, 1, 'a', 'a'}};
  for (std::int32_t state = 1; state <= count; state++)
    automaton.edges.push_back({state, state + 1, 'a', 'b'});
  return std::make_shared<const ByteAutomaton>(std::move(automaton));
}

bool has(const OutputMasks::Words& words, std::int32_t token) {
  return LogitEdits{{}, words}.allows(token);
}

TEST(OutputMasks, AreThoseOfAPlainSimulation) {
  std::mt19937 random(1);
  std::vector<std::string> texts = {"",  "",   "a",  "a", "ab", "abc", "abd",
                                    "b", "ba", "bb", "c", "ca", "d",   "dd"};
  for (int i = 0; i < 120; i++) {  // more than one word of a mask
    std::string& text = texts.emplace_back();
    for (std::size_t n = 1 + random() % 5; n > 0; n--) text += static_cast<char>('a' + random() % 5);
  }
  const ListTokenizer tokenizer(texts);
  const std::int64_t eos = 0;
  const std::vector<std::int32_t> stop = {1};
  OutputMasks masks(&tokenizer, tokenizer.size(), std::span(&eos, 1));
  OutputMasks forgetful(&tokenizer, tokenizer.size(), std::span(&eos, 1),
                        1);  // it keeps nothing that it can drop
  std::int64_t allowed = 0, refused = 0, ends = 0;
  for (int round = 0; round < 40; round++) {
    const auto automaton = random_automaton(random);
    auto constraint = masks.shared(automaton), dropped = forgetful.shared(automaton);
    std::vector<std::int32_t> output;
    OutputMasks::Place place, forgotten;
    for (std::string text; output.size() < 6;) {
      const auto words = masks.allowed(constraint, output, stop);
      const std::uint64_t walked = masks.walked();
      ASSERT_EQ(*masks.allowed(constraint, output, stop, &place), *words);
      ASSERT_EQ(masks.walked() - walked, output.empty() ? 0 : 1) << "only what has come";
      ASSERT_EQ(*forgetful.allowed(dropped, output, stop), *words);
      ASSERT_EQ(*forgetful.allowed(dropped, output, stop, &forgotten), *words);
      ASSERT_EQ(std::ssize(*words), mask_words(tokenizer.size()));
      std::vector<std::int32_t> some;
      for (std::int32_t token = 2; token < tokenizer.size(); token++) {
        const bool fits = !after(*automaton, text + tokenizer.token_bytes(token)).empty();
        ASSERT_EQ(has(*words, token), fits) << "'" << text << "' + '" << tokenizer.token_bytes(token) << "'";
        if (fits) some.push_back(token);
        (fits ? allowed : refused)++;
      }
      const bool accepts = after(*automaton, text).contains(automaton->accept);
      ASSERT_EQ(has(*words, 0), accepts || some.empty());
      ASSERT_EQ(has(*words, 1), accepts);
      ends += accepts;
      if (some.empty()) break;
      output.push_back(some[random() % some.size()]);
      text += tokenizer.token_bytes(output.back());
    }
  }
  EXPECT_GT(allowed, 1000);
  EXPECT_GT(refused, 1000);
  EXPECT_GT(ends, 20);
}

// As with drafts that were wrong.
TEST(OutputMasks, APlaceOfAnotherOutputIsNotGoneOnFrom) {
  const ListTokenizer tokenizer({"", "a", "b"});
  const std::int64_t eos = 0;
  OutputMasks masks(&tokenizer, 3, std::span(&eos, 1));
  auto constraint = masks.shared(last_but(2));
  OutputMasks::Place place;
  std::mt19937 random(1);
  for (int i = 0; i < 200; i++) {
    std::vector<std::int32_t> output(random() % 6);
    for (std::int32_t& token : output) token = static_cast<std::int32_t>(1 + random() % 2);
    ASSERT_EQ(*masks.allowed(constraint, output, {}, &place), *masks.allowed(constraint, output, {}));
  }
}

TEST(OutputMasks, ATextThatIsNotAllowedIsFollowedByItsEnd) {
  const ListTokenizer tokenizer({"", "a", "b"});
  const std::int64_t eos = 0;
  OutputMasks masks(&tokenizer, 3, std::span(&eos, 1));
  auto constraint = masks.shared(automaton_of("a"));
  EXPECT_EQ(*masks.allowed(constraint, {}, {}), OutputMasks::Words{0b010});
  EXPECT_EQ(*masks.allowed(constraint, std::vector<std::int32_t>{1}, {}), OutputMasks::Words{0b001});
  EXPECT_EQ(*masks.allowed(constraint, std::vector<std::int32_t>{2}, {}), OutputMasks::Words{0b001});
}

TEST(OutputMasks, AutomataOfOneContentShareWhatIsKnown) {
  const ListTokenizer tokenizer({"", "a", "b"});
  OutputMasks masks(&tokenizer, 3, {});
  const auto first = masks.shared(automaton_of("ab"));
  EXPECT_EQ(masks.shared(automaton_of("ab")), first);
  EXPECT_NE(masks.shared(automaton_of("ba")), first);
  EXPECT_EQ(masks.size(), 2U);
}

TEST(OutputMasks, WhatNoRequestHoldsIsDroppedFirst) {
  const ListTokenizer tokenizer({"", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"});
  const std::int64_t eos = 0;
  constexpr std::size_t kMost = 300'000;
  OutputMasks masks(&tokenizer, tokenizer.size(), std::span(&eos, 1), kMost);
  auto held = masks.shared(automaton_of("held, and the least used"));
  const OutputMasks::Constraint* const before = held.get();
  masks.allowed(held, {}, {});
  std::size_t most = 0;
  for (int i = 1000; i < 3000; i++) {
    auto constraint = masks.shared(automaton_of(std::to_string(i)));
    const std::vector<std::int32_t> output = {i / 1000 + 1};
    EXPECT_TRUE(has(*masks.allowed(constraint, output, {}), i / 100 % 10 + 1));
    EXPECT_LE(masks.bytes(), kMost);
    most = std::max(most, masks.size());
  }
  EXPECT_GT(most, 20U);
  EXPECT_LT(most, 300U);  // the states of a walk take more than 1000 bytes each
  masks.allowed(held, {}, {});
  EXPECT_EQ(held.get(), before);
  EXPECT_EQ(masks.shared(automaton_of("held, and the least used")), held);
}

TEST(OutputMasks, AutomataInUseAreDroppedAndComeBackWhereRoomIsShort) {
  const ListTokenizer tokenizer({"", "a", "b", "c"});
  const std::int64_t eos = 0;
  OutputMasks masks(&tokenizer, 4, std::span(&eos, 1), 20'000);
  std::vector<std::shared_ptr<OutputMasks::Constraint>> held;
  for (std::size_t i = 0; i < 50; i++) held.push_back(masks.shared(automaton_of(std::string(i, 'a') + 'b')));
  for (std::size_t n = 0; n < 5; n++)
    for (std::size_t i = 0; i < held.size(); i++) {
      const std::vector<std::int32_t> output(n, 1);
      const std::uint64_t expected = n < i ? 0b0010 : n == i ? 0b0100 : 0b0001;
      EXPECT_EQ(*masks.allowed(held[i], output, {}), OutputMasks::Words{expected}) << n << " of " << i;
      EXPECT_LE(masks.bytes(), 20'000U);
    }
  EXPECT_LT(masks.size(), 20U);
}

TEST(OutputMasks, OneMaskKeepsToTheBound) {
  std::mt19937 random(2);
  std::vector<std::string> texts = {""};
  for (int i = 0; i < 300; i++)
    for (std::string& text = texts.emplace_back(); text.size() < 24;) text += random() % 2 ? 'a' : 'b';
  const ListTokenizer tokenizer(texts);
  const std::int64_t eos = 0;
  OutputMasks all(&tokenizer, tokenizer.size(), std::span(&eos, 1));
  OutputMasks some(&tokenizer, tokenizer.size(), std::span(&eos, 1), 400'000);
  auto known = all.shared(last_but(14)), forgotten = some.shared(last_but(14));
  std::vector<std::int32_t> output;
  for (int i = 0; i < 4; i++) {
    EXPECT_EQ(*some.allowed(forgotten, output, {}), *all.allowed(known, output, {}));
    output.push_back(1 + static_cast<std::int32_t>(random() % 300));
  }
  EXPECT_GT(all.bytes(), 2'000'000U);
  EXPECT_LE(some.bytes(), 400'000U);
}

}  // namespace
}  // namespace ptrt
