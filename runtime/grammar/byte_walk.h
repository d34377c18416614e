// An automaton made deterministic as far as it is walked: a state is a set of the automaton's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "runtime/requests/byte_automaton.h"

namespace ptrt {

class ByteWalk {
 public:
  static constexpr std::int32_t kDead = -1;  // no text that is allowed begins so

  explicit ByteWalk(std::shared_ptr<const ByteAutomaton> automaton);

  std::int32_t start() const { return 0; }
  // Of a state that is not dead.
  std::int32_t next(std::int32_t state, unsigned char byte);
  bool accepts(std::int32_t state) const { return states_[static_cast<std::size_t>(state)].accepts; }

  // Forgets all states but the start and `kept` (dead ones may be among them), which get new numbers.
  void forget_others(std::span<std::int32_t> kept);

  const std::shared_ptr<const ByteAutomaton>& automaton() const { return automaton_; }
  std::size_t bytes() const { return bytes_; }  // of memory, about; with the automaton

 private:
  using Set = std::vector<std::int32_t>;  // ascending, without states that only jump
  struct SetHash {
    std::size_t operator()(const Set& set) const;
  };
  static constexpr std::int32_t kUnknown = -2;
  struct State {
    const Set* set;
    bool accepts;
    std::array<std::int32_t, 256> next;
  };

  std::int32_t state_of(Set targets);  // jumps not yet taken
  std::int32_t compute_next(std::int32_t state, unsigned char byte);
  std::size_t arrow_bytes() const;

  std::shared_ptr<const ByteAutomaton> automaton_;
  std::vector<std::int32_t> first_edge_,
      first_jump_;  // of a state: those from [s] to [s + 1], in order of `from`
  std::vector<ByteAutomaton::Edge> edges_;
  std::vector<ByteAutomaton::Jump> jumps_;
  std::deque<State> states_;  // they are large: none is copied where there come more
  std::unordered_map<Set, std::int32_t, SetHash> ids_;
  std::vector<std::int32_t> marks_;  // the number of the set for which a state was last seen
  std::int32_t mark_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace ptrt
