// What becomes of a mutant.
#pragma once

#include <cstdint>
#include <string>

#include "seeds.h"

namespace ptrt {

enum class Outcome : std::uint8_t {
  refused,        // with a message
  crash_refused,  // the probe crashed, and said so
  hang_refused,   // the probe ran out of time
  same,           // reads as its seed does
  other_config,   // the same tensors, and another configuration
  other_content,  // other tensors, and the library alone reads them too
  unchecked,      // other content of a tensor that has lost its checksum
  load_crashed,   // after the probe had passed: a fault
  load_hung,      // likewise
  differs,        // reads other tensors than the library alone does: a fault
};
constexpr int kOutcomes = 10;

const char* to_string(Outcome outcome);

struct Judgement {
  Outcome outcome;
  std::string message;  // of a refusal, or about a fault
};

// Probes the file and, where that passes, loads it in a process of its own.
Judgement judge(const std::string& file, const Content& seed);

}  // namespace ptrt
