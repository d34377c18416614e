// A digest of all tokens sampled so far, in order: ranks whose digests differ have diverged.
#pragma once

#include <cstdint>

namespace ptrt {

class TokenDigest {
 public:
  void add(std::int64_t request, std::int32_t token) {
    mix(static_cast<std::uint64_t>(request));
    mix(static_cast<std::uint64_t>(token));
  }
  std::uint64_t value() const { return value_; }

 private:
  // The finaliser of splitmix64 over a running sum.
  void mix(std::uint64_t value) {
    std::uint64_t z = value_ + 0x9e3779b97f4a7c15ull + value;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    value_ = z ^ (z >> 31);
  }

  std::uint64_t value_ = 0;
};

}  // namespace ptrt
