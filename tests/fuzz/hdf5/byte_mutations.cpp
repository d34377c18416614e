#include <algorithm>
#include <array>

#include "checksum.h"
#include "mutations.h"

namespace ptrt {
namespace {

std::size_t below(Random& random, std::size_t n) {
  return std::uniform_int_distribution<std::size_t>(0, n - 1)(random);
}

// Rarely in a dataset's bytes: their damage is the checksums' to find.
std::size_t pick_place(const std::vector<std::uint8_t>& file,
                       const std::vector<std::pair<std::size_t, std::size_t>>& datasets, Random& random) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    const std::size_t at = below(random, file.size());
    const bool inside = std::ranges::any_of(
        datasets, [&](const auto& range) { return at >= range.first && at < range.second; });
    if (!inside || random() % 50 == 0) return at;
  }
  return below(random, file.size());
}

void put_number(std::vector<std::uint8_t>& file, std::size_t at, Random& random) {
  constexpr std::array<std::uint64_t, 14> kNumbers{0,
                                                   1,
                                                   2,
                                                   7,
                                                   8,
                                                   0x7f,
                                                   0xff,
                                                   0x8000,
                                                   0xffff,
                                                   0x7fffffff,
                                                   0xffffffff,
                                                   0x10000000,
                                                   0x7fffffffffffffff,
                                                   0xffffffffffffffff};
  std::uint64_t value = kNumbers[below(random, kNumbers.size())];
  if (random() % 4 == 0) value = below(random, file.size());  // an address in the file
  const std::size_t width = std::size_t{1} << below(random, 4);
  for (std::size_t i = 0; i < width && at + i < file.size(); ++i)
    file[at + i] = static_cast<std::uint8_t>(value >> (8 * i));
}

void change_once(std::vector<std::uint8_t>& file, std::size_t at, Random& random) {
  switch (random() % 8) {
    case 0:
    case 1:
      file[at] ^= static_cast<std::uint8_t>(1U << (random() % 8));
      break;
    case 2:
      file[at] = static_cast<std::uint8_t>(random());
      break;
    case 3:
    case 4:
      put_number(file, at, random);
      break;
    case 5: {  // a block from elsewhere
      const std::size_t n = std::min(std::size_t{1} << (random() % 7), file.size() - at);
      const std::size_t from = below(random, file.size() - n + 1);
      const std::vector<std::uint8_t> block(file.begin() + static_cast<std::ptrdiff_t>(from),
                                            file.begin() + static_cast<std::ptrdiff_t>(from + n));
      std::ranges::copy(block, file.begin() + static_cast<std::ptrdiff_t>(at));
      break;
    }
    case 6:
      std::fill_n(file.begin() + static_cast<std::ptrdiff_t>(at),
                  std::min(std::size_t{1} << (random() % 8), file.size() - at), std::uint8_t{0});
      break;
    default: {  // add to or take from a number
      const auto by = static_cast<std::uint8_t>(random() % 32);
      file[at] = static_cast<std::uint8_t>(random() % 2 == 0 ? file[at] + by : file[at] - by);
    }
  }
}

}  // namespace

void change_bytes(std::vector<std::uint8_t>& file,
                  const std::vector<std::pair<std::size_t, std::size_t>>& datasets, Random& random) {
  const std::size_t changes = 1 + random() % 4;
  for (std::size_t i = 0; i < changes; ++i) change_once(file, pick_place(file, datasets, random), random);
  if (random() % 2 == 0) repair_checksums(file);
  if (random() % 100 == 0) file.resize(1 + below(random, file.size()));
}

}  // namespace ptrt
