#include "runtime/grammar/output_masks.h"

#include <algorithm>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/logit_edits.h"
#include "runtime/grammar/byte_walk.h"

namespace ptrt {
namespace {

constexpr std::size_t kNodeBytes = 128;  // of a mask or a constraint in a map, and of its blocks of memory

void set_token(OutputMasks::Words& words, std::int32_t token) {
  words[static_cast<std::size_t>(token / kTokensPerMaskWord)] |= std::uint64_t{1}
                                                                 << (token % kTokensPerMaskWord);
}

}  // namespace

struct OutputMasks::Constraint {
  explicit Constraint(std::shared_ptr<const ByteAutomaton> of) : automaton(std::move(of)) {
    walk.emplace(automaton);
  }

  std::shared_ptr<const ByteAutomaton> automaton;
  std::optional<ByteWalk> walk;                                          // none once it is dropped
  std::unordered_map<std::int32_t, std::shared_ptr<const Words>> masks;  // by state of the walk
  std::size_t bytes = 0;                                                 // as last counted
  std::size_t least = 0;        // of them, after all was forgotten that could be
  std::uint64_t called = 0;     // the last call of allowed() for it
  std::uint64_t numbering = 0;  // of the walk's states
};

std::size_t OutputMasks::ContentHash::operator()(const ByteAutomaton* automaton) const {
  std::uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&](std::int64_t number) {
    hash = (hash ^ static_cast<std::uint64_t>(number)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  };
  add(automaton->states);
  add(automaton->accept);
  for (const ByteAutomaton::Edge& edge : automaton->edges) {
    add((std::int64_t{edge.from} << 32) + edge.to);
    add((std::int64_t{edge.low} << 32) + edge.high);
  }
  for (const ByteAutomaton::Jump& jump : automaton->jumps) add((std::int64_t{jump.from} << 32) + jump.to);
  return static_cast<std::size_t>(hash);
}

OutputMasks::OutputMasks(const Tokenizer* tokenizer, std::int64_t vocab_size,
                         std::span<const std::int64_t> ends, std::size_t most_bytes)
    : tokenizer_(tokenizer),
      vocab_size_(vocab_size),
      ends_(ends.begin(), ends.end()),
      most_bytes_(most_bytes) {}

OutputMasks::~OutputMasks() = default;

std::shared_ptr<OutputMasks::Constraint> OutputMasks::shared(
    const std::shared_ptr<const ByteAutomaton>& automaton) {
  if (const auto found = constraints_.find(automaton.get()); found != constraints_.end())
    return found->second;
  auto constraint = std::make_shared<Constraint>(automaton);
  constraints_.emplace(automaton.get(), constraint);
  constraint->called = calls_;
  constraint->numbering = ++numberings_;
  count(*constraint, {});
  return constraint;
}

std::size_t OutputMasks::bytes_of(const Constraint& constraint) const {
  const std::size_t mask = 8 * static_cast<std::size_t>(mask_words(vocab_size_)) + kNodeBytes;
  return sizeof(Constraint) + kNodeBytes + constraint.walk->bytes() + mask * constraint.masks.size();
}

// After it may have grown. `states` of its walk are in use: they may get other numbers.
void OutputMasks::count(Constraint& constraint, std::span<std::int32_t> states) {
  const std::size_t bytes = bytes_of(constraint);
  bytes_ += bytes - std::exchange(constraint.bytes, bytes);
  if (bytes_ > most_bytes_) make_room(constraint, states);
}

// A quarter at once, so that the others are sorted seldom.
void OutputMasks::make_room(Constraint& constraint, std::span<std::int32_t> states) {
  std::vector<std::shared_ptr<Constraint>> others;
  for (const auto& [automaton, other] : constraints_)
    if (other.get() != &constraint) others.push_back(other);
  std::ranges::sort(others, {}, [](const auto& other) {
    return std::pair(other.use_count() > 2, other->called);  // one here, one in the map
  });
  for (const auto& other : others)
    if (bytes_ > most_bytes_ / 4 * 3) drop(*other);
  // Much is forgotten each time: where one walk needs more than there is, it is not begun anew all the time.
  if (bytes_ <= most_bytes_ || constraint.bytes < 2 * constraint.least) return;
  constraint.masks.clear();
  constraint.walk->forget_others(states);
  constraint.numbering = ++numberings_;
  constraint.least = bytes_of(constraint);
  bytes_ += constraint.least - std::exchange(constraint.bytes, constraint.least);
}

void OutputMasks::drop(Constraint& constraint) {
  bytes_ -= std::exchange(constraint.bytes, 0);
  constraint.walk.reset();
  constraint.masks = {};
  constraints_.erase(constraint.automaton.get());
}

OutputMasks::Words OutputMasks::compute_mask(Constraint& constraint, std::int32_t& state) {
  ByteWalk& walk = *constraint.walk;
  Words words(static_cast<std::size_t>(mask_words(vocab_size_)), 0);
  std::vector<std::int32_t> states = {state};  // after so many bytes of the current text
  for (const TokenTexts::Entry& entry : texts_->entries()) {
    // States end with a dead one where the text before could not go further.
    if (states.back() == ByteWalk::kDead && entry.shared + 1 >= states.size()) continue;
    states.resize(std::min<std::size_t>(states.size(), entry.shared + std::size_t{1}));
    const std::string_view text = texts_->text(entry);
    while (states.back() != ByteWalk::kDead && states.size() <= text.size()) {
      const std::size_t before = walk.bytes();
      states.push_back(walk.next(states.back(), static_cast<unsigned char>(text[states.size() - 1])));
      if (walk.bytes() != before) count(constraint, states);
    }
    if (states.back() != ByteWalk::kDead) set_token(words, entry.token);
  }
  state = states.front();
  return words;
}

// Without stop tokens.
std::shared_ptr<const OutputMasks::Words> OutputMasks::mask_after(Constraint& constraint,
                                                                  std::int32_t& state) {
  if (const auto known = constraint.masks.find(state); known != constraint.masks.end()) return known->second;
  Words words(static_cast<std::size_t>(mask_words(vocab_size_)), 0);
  // A draft of tokens may leave what is allowed; what would follow it is never used.
  if (state != ByteWalk::kDead) words = compute_mask(constraint, state);
  const bool none = std::ranges::all_of(words, [](std::uint64_t word) { return word == 0; });
  if (none || constraint.walk->accepts(state))
    for (const std::int32_t token : ends_) set_token(words, token);
  const auto mask = std::make_shared<const Words>(std::move(words));
  constraint.masks.emplace(state, mask);
  count(constraint, std::span(&state, 1));
  return mask;
}

// From the place on, where it is of the output's beginning.
std::int32_t OutputMasks::state_after(Constraint& constraint, std::span<const std::int32_t> output,
                                      const Place* place) {
  ByteWalk& walk = *constraint.walk;
  std::int32_t state = walk.start();
  if (place != nullptr && place->numbering == constraint.numbering && place->output.size() <= output.size() &&
      std::ranges::equal(place->output, output.first(place->output.size()))) {
    state = place->state;
    output = output.subspan(place->output.size());
  }
  walked_ += output.size();
  for (const std::int32_t token : output)
    for (const char byte : texts_->text_of(token)) {
      if (state == ByteWalk::kDead) break;
      const std::size_t before = walk.bytes();
      state = walk.next(state, static_cast<unsigned char>(byte));
      if (walk.bytes() != before) count(constraint, std::span(&state, 1));
    }
  return state;
}

std::shared_ptr<const OutputMasks::Words> OutputMasks::allowed(std::shared_ptr<Constraint>& constraint,
                                                               std::span<const std::int32_t> output,
                                                               std::span<const std::int32_t> stop_tokens,
                                                               Place* place) {
  PTRT_CHECK(tokenizer_ != nullptr);
  if (!texts_) texts_.emplace(*tokenizer_, vocab_size_);
  if (!constraint->walk) constraint = shared(constraint->automaton);
  constraint->called = ++calls_;
  std::int32_t state = state_after(*constraint, output, place);
  const auto mask = mask_after(*constraint, state);
  if (place != nullptr) *place = {{output.begin(), output.end()}, state, constraint->numbering};
  if (stop_tokens.empty() || state == ByteWalk::kDead || !constraint->walk->accepts(state)) return mask;
  Words words = *mask;
  for (const std::int32_t token : stop_tokens) set_token(words, token);
  return std::make_shared<const Words>(std::move(words));
}

}  // namespace ptrt
