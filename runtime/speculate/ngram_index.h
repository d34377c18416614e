// Where the last tokens of a sequence occurred in it before.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>

namespace ptrt {

class NgramIndex {
 public:
  static constexpr std::array<std::size_t, 4> kLengths = {8, 4, 3, 2};  // looked for in this order

  struct Match {
    std::size_t place = 0;  // kLengths[place] tokens match
    std::size_t next = 0;   // index of the token after the earlier occurrence, the latest of several
  };

  // The longest of the last tokens that occurred before; false: none did. `tokens` begins with those of the call
  // before; only the new ones are read, so a call takes time for these alone.
  bool find(std::span<const std::int32_t> tokens, Match& match);

 private:
  void add_until(std::span<const std::int32_t> tokens, std::size_t end);

  std::array<std::unordered_map<std::uint64_t, std::uint32_t>, kLengths.size()>
      next_;               // by hash of the tokens
  std::size_t added_ = 0;  // tokens [0, added_) may be the end of an earlier occurrence
};

}  // namespace ptrt
