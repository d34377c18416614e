// An order of requests in which those whose prompts begin alike follow each other, so that a prefix cache that does
// not hold every prefix serves them.
//
// A replica gets what begins like the request it got last, as far as that goes: prompts are compared at 1, 2, 4, …
// pages of tokens. When nothing is left of what was there as this began, the oldest request follows, of those that
// begin least like what other replicas work on. So a request is passed over by what is there before it alone, and
// requests that share nothing keep their order.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "launch/jsonl/line_window.h"

namespace ptrt {

class PrefixOrder {
 public:
  explicit PrefixOrder(std::int64_t replicas) : groups_(static_cast<std::size_t>(replicas)) {}

  // One more request; their lines ascend. Prompts of any length take little memory.
  void add(std::int64_t line, std::span<const std::int32_t> prompt);
  // The request for a replica that begins like its last one; none where there is none.
  std::optional<std::int64_t> next_alike(std::int64_t replica) const;
  // The request that a replica takes otherwise. There must be one.
  std::int64_t next_other(std::int64_t replica) const;
  // A replica gets it.
  void take(std::int64_t replica, std::int64_t line);

 private:
  using Keys = std::vector<std::uint64_t>;  // of the first 1, 2, 4, … pages of a prompt
  struct Group {
    Keys keys;                // of the request that the replica got last
    std::int64_t newest = 0;  // line that was there when its group began
  };

  static std::size_t common(const Keys& a, const Keys& b);

  std::vector<Group> groups_;  // of each replica
  LineWindow<Keys> lines_;
  std::int64_t newest_ = -1;                                          // line added
  std::unordered_map<std::uint64_t, std::set<std::int64_t>> by_key_;  // lines
};

}  // namespace ptrt
