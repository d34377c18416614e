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
  std::int64_t allowed = 0, refused = 0, ends = 0;
  for (int round = 0; round < 40; round++) {
    const auto automaton = random_automaton(random);
    std::vector<std::int32_t> output;
    for (std::string text; output.size() < 6;) {
      const auto words = masks.allowed(automaton, output, stop);
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

TEST(OutputMasks, ATextThatIsNotAllowedIsFollowedByItsEnd) {
  const ListTokenizer tokenizer({"", "a", "b"});
  const std::int64_t eos = 0;
  OutputMasks masks(&tokenizer, 3, std::span(&eos, 1));
  const auto only_a = std::make_shared<const ByteAutomaton>(
      ByteAutomaton{.states = 2, .accept = 1, .edges = {{0, 1, 'a', 'a'}}, .jumps = {}});
  EXPECT_EQ(*masks.allowed(only_a, {}, {}), OutputMasks::Words{0b010});
  EXPECT_EQ(*masks.allowed(only_a, std::vector<std::int32_t>{1}, {}), OutputMasks::Words{0b001});
  EXPECT_EQ(*masks.allowed(only_a, std::vector<std::int32_t>{2}, {}), OutputMasks::Words{0b001});
}

}  // namespace
}  // namespace ptrt
