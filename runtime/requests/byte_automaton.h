// What the bytes of a request's output may be: a nondeterministic automaton over bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace ptrt {

struct ByteAutomaton {
  struct Edge {
    std::int32_t from = 0, to = 0;
    std::int16_t low = 0, high = 0;  // it takes a byte from low to high
    bool operator==(const Edge&) const = default;
  };
  struct Jump {  // takes no byte
    std::int32_t from = 0, to = 0;
    bool operator==(const Jump&) const = default;
  };

  std::int32_t states = 1;  // from 0, the start
  std::int32_t accept =
      0;  // the output may end there; every edge and jump leads to where it can be reached from
  std::vector<Edge> edges;
  std::vector<Jump> jumps;

  bool operator==(const ByteAutomaton&) const = default;
  // Of memory, about.
  std::size_t bytes() const {
    return sizeof *this + edges.capacity() * sizeof(Edge) + jumps.capacity() * sizeof(Jump);
  }
};

// An automaton that several requests share, or none; equal by content.
struct OutputConstraint {
  std::shared_ptr<const ByteAutomaton> automaton;

  explicit operator bool() const { return automaton != nullptr; }
  bool operator==(const OutputConstraint& other) const {
    return automaton == other.automaton || (automaton && other.automaton && *automaton == *other.automaton);
  }
};

}  // namespace ptrt
