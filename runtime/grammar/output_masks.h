// The tokens that may come next in outputs whose text an automaton constrains. A function of the automaton and the
// output alone, so every rank computes the same; what is kept between calls only saves time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "model_io/tokenizer/tokenizer.h"
#include "runtime/grammar/token_texts.h"
#include "runtime/requests/byte_automaton.h"

namespace ptrt {

class OutputMasks {
 public:
  using Words = std::vector<std::uint64_t>;  // as LogitEdits::allowed
  struct Constraint;                         // an automaton, and what is known of it
  // How far an output has been walked, for one that continues it.
  struct Place {
    std::vector<std::int32_t> output;
    std::int32_t state = 0;       // after it
    std::uint64_t numbering = 0;  // of the states; 0: nothing has been walked
  };
  static constexpr std::size_t kMostBytes = std::size_t{256} << 20;

  // `tokenizer` must outlive it, and be there when allowed() is called. `ends`: the model's eos tokens. What is known
  // takes about `most_bytes`; more only where the automaton of one call does, and then at most twice what this call
  // needs at once.
  OutputMasks(const Tokenizer* tokenizer, std::int64_t vocab_size, std::span<const std::int64_t> ends,
              std::size_t most_bytes = kMostBytes);
  OutputMasks(const OutputMasks&) = delete;  // the map's keys are in what it maps to
  OutputMasks& operator=(const OutputMasks&) = delete;
  ~OutputMasks();

  // One object for all automata of this content. A request holds it while it runs: where room is short, those that
  // nobody holds go first.
  std::shared_ptr<Constraint> shared(const std::shared_ptr<const ByteAutomaton>& automaton);
  // Tokens after which some text that the automaton accepts can still come, and where the text may end the eos tokens
  // and `stop_tokens`. Only these where nothing else can follow, which also ends an output that the vocabulary cannot
  // spell. Renews `constraint` where it was dropped for want of room. `place`, which changes no answer, is of outputs
  // with this constraint alone.
  std::shared_ptr<const Words> allowed(std::shared_ptr<Constraint>& constraint,
                                       std::span<const std::int32_t> output,
                                       std::span<const std::int32_t> stop_tokens, Place* place = nullptr);

  std::size_t bytes() const { return bytes_; }  // of all that is known, about
  std::size_t size() const { return constraints_.size(); }
  std::uint64_t walked() const { return walked_; }  // tokens of outputs

 private:
  struct ContentHash {
    std::size_t operator()(const ByteAutomaton* automaton) const;
  };
  struct ContentEqual {
    bool operator()(const ByteAutomaton* a, const ByteAutomaton* b) const { return a == b || *a == *b; }
  };

  std::int32_t state_after(Constraint& constraint, std::span<const std::int32_t> output, const Place* place);
  std::shared_ptr<const Words> mask_after(Constraint& constraint, std::int32_t& state);
  Words compute_mask(Constraint& constraint, std::int32_t& state);
  void count(Constraint& constraint, std::span<std::int32_t> states);
  void make_room(Constraint& constraint, std::span<std::int32_t> states);
  void drop(Constraint& constraint);
  std::size_t bytes_of(const Constraint& constraint) const;

  const Tokenizer* tokenizer_;
  std::int64_t vocab_size_;
  std::vector<std::int32_t> ends_;
  std::size_t most_bytes_;
  std::optional<TokenTexts> texts_;
  std::unordered_map<const ByteAutomaton*, std::shared_ptr<Constraint>, ContentHash, ContentEqual>
      constraints_;
  std::size_t bytes_ = 0;    // the sum of theirs
  std::uint64_t calls_ = 0;  // of allowed()
  std::uint64_t walked_ = 0;
  std::uint64_t numberings_ = 0;  // of states, so far
};

}  // namespace ptrt
