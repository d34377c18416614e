#include "runtime/grammar/output_masks.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/logit_edits.h"

namespace ptrt {
namespace {

constexpr std::size_t kMostBytes = std::size_t{256} << 20;  // of what is kept

void set_token(OutputMasks::Words& words, std::int32_t token) {
  words[static_cast<std::size_t>(token / kTokensPerMaskWord)] |= std::uint64_t{1}
                                                                 << (token % kTokensPerMaskWord);
}

}  // namespace

OutputMasks::OutputMasks(const Tokenizer* tokenizer, std::int64_t vocab_size,
                         std::span<const std::int64_t> ends)
    : tokenizer_(tokenizer), vocab_size_(vocab_size), ends_(ends.begin(), ends.end()) {}

std::size_t OutputMasks::kept_bytes() const {
  const std::size_t mask = 8 * static_cast<std::size_t>(mask_words(vocab_size_));
  std::size_t bytes = 0;
  for (const auto& constraint : constraints_)
    bytes += constraint->walk.bytes() + mask * constraint->masks.size();
  return bytes;
}

std::shared_ptr<const ByteAutomaton> OutputMasks::shared(
    const std::shared_ptr<const ByteAutomaton>& automaton) {
  return constraint_of(automaton).walk.automaton();
}

OutputMasks::Constraint& OutputMasks::constraint_of(const std::shared_ptr<const ByteAutomaton>& automaton) {
  const auto found = std::ranges::find_if(constraints_, [&](const auto& constraint) {
    return constraint->walk.automaton() == automaton || *constraint->walk.automaton() == *automaton;
  });
  if (found != constraints_.end()) {
    std::rotate(constraints_.begin(), found, found + 1);
  } else {
    constraints_.insert(constraints_.begin(), std::make_unique<Constraint>(automaton));
  }
  while (constraints_.size() > 1 && kept_bytes() > kMostBytes) constraints_.pop_back();
  if (kept_bytes() > kMostBytes) constraints_.front() = std::make_unique<Constraint>(automaton);
  return *constraints_.front();
}

OutputMasks::Words OutputMasks::mask_of(ByteWalk& walk, std::int32_t state) const {
  Words words(static_cast<std::size_t>(mask_words(vocab_size_)), 0);
  std::vector<std::int32_t> states = {state};  // after so many bytes of the current text
  for (const TokenTexts::Entry& entry : texts_->entries()) {
    // States end with a dead one where the text before could not go further.
    if (states.back() == ByteWalk::kDead && entry.shared + 1 >= states.size()) continue;
    states.resize(std::min<std::size_t>(states.size(), entry.shared + std::size_t{1}));
    const std::string_view text = texts_->text(entry);
    while (states.back() != ByteWalk::kDead && states.size() <= text.size())
      states.push_back(walk.next(states.back(), static_cast<unsigned char>(text[states.size() - 1])));
    if (states.back() != ByteWalk::kDead) set_token(words, entry.token);
  }
  return words;
}

std::shared_ptr<const OutputMasks::Words> OutputMasks::allowed(
    const std::shared_ptr<const ByteAutomaton>& automaton, std::span<const std::int32_t> output,
    std::span<const std::int32_t> stop_tokens) {
  PTRT_CHECK(tokenizer_ != nullptr);
  if (!texts_) texts_.emplace(*tokenizer_, vocab_size_);
  Constraint& constraint = constraint_of(automaton);
  std::int32_t state = constraint.walk.start();
  for (const std::int32_t token : output)
    for (const char byte : texts_->text_of(token))
      if (state != ByteWalk::kDead) state = constraint.walk.next(state, static_cast<unsigned char>(byte));
  // A draft of tokens may leave what is allowed; what would follow it is never used.
  auto& kept = constraint.masks[state];
  if (!kept) {
    Words words(static_cast<std::size_t>(mask_words(vocab_size_)), 0);
    if (state != ByteWalk::kDead) words = mask_of(constraint.walk, state);
    const bool none = std::ranges::all_of(words, [](std::uint64_t word) { return word == 0; });
    if (none || constraint.walk.accepts(state))
      for (const std::int32_t token : ends_) set_token(words, token);
    kept = std::make_shared<const Words>(std::move(words));
  }
  if (stop_tokens.empty() || state == ByteWalk::kDead || !constraint.walk.accepts(state)) return kept;
  Words words = *kept;
  for (const std::int32_t token : stop_tokens) set_token(words, token);
  return std::make_shared<const Words>(std::move(words));
}

}  // namespace ptrt
