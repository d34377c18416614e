#pragma once

#include <cstddef>
#include <cstdint>
#include <random>

namespace ptrt::fuzz {

// Random choices; the same on every machine for the same seed.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  std::size_t below(std::size_t end) { return end == 0 ? 0 : static_cast<std::size_t>(engine_() % end); }
  bool one_in(std::size_t n) { return below(n) == 0; }
  template <typename Container>
  const auto& pick(const Container& items) {
    return *(items.begin() + static_cast<std::ptrdiff_t>(below(items.size())));
  }
  std::uint64_t bits() { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

}  // namespace ptrt::fuzz
