// The seeds of a request's samples.
#pragma once

#include <cstdint>

namespace ptrt {

// Sample 0 has the request's own seed, so it is the output of a request for one sample. Those of the others are
// SplitMix64 of the seed and the index: neighbouring seeds and indices have nothing in common.
constexpr std::uint64_t seed_of_sample(std::uint64_t seed, std::int64_t sample) {
  if (sample == 0) return seed;
  std::uint64_t z = seed + static_cast<std::uint64_t>(sample) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace ptrt
