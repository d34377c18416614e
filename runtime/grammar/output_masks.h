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
#include "runtime/grammar/byte_walk.h"
#include "runtime/grammar/token_texts.h"

namespace ptrt {

class OutputMasks {
 public:
  using Words = std::vector<std::uint64_t>;  // as LogitEdits::allowed

  // `tokenizer` must outlive it, and be there when allowed() is called. `ends`: the model's eos tokens.
  OutputMasks(const Tokenizer* tokenizer, std::int64_t vocab_size, std::span<const std::int64_t> ends);

  // One object for all automata of this content, so that it is found by its address.
  std::shared_ptr<const ByteAutomaton> shared(const std::shared_ptr<const ByteAutomaton>& automaton);
  // Tokens after which some text that the automaton accepts can still come, and where the text may end the eos tokens
  // and `stop_tokens`. Only these where nothing else can follow, which also ends an output that the vocabulary cannot
  // spell.
  std::shared_ptr<const Words> allowed(const std::shared_ptr<const ByteAutomaton>& automaton,
                                       std::span<const std::int32_t> output,
                                       std::span<const std::int32_t> stop_tokens);

 private:
  struct Constraint {
    explicit Constraint(std::shared_ptr<const ByteAutomaton> automaton) : walk(std::move(automaton)) {}
    ByteWalk walk;
    std::unordered_map<std::int32_t, std::shared_ptr<const Words>> masks;  // by state of the walk
  };

  Constraint& constraint_of(const std::shared_ptr<const ByteAutomaton>& automaton);
  Words mask_of(ByteWalk& walk, std::int32_t state) const;
  std::size_t kept_bytes() const;

  const Tokenizer* tokenizer_;
  std::int64_t vocab_size_;
  std::vector<std::int32_t> ends_;
  std::optional<TokenTexts> texts_;
  std::vector<std::unique_ptr<Constraint>> constraints_;  // the last used first
};

}  // namespace ptrt
