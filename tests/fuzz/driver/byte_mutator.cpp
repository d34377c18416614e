#include "driver/byte_mutator.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace ptrt::fuzz {
namespace {

using namespace std::string_view_literals;

// Characters that end something, whole and broken UTF-8, numbers at the ends of their types.
constexpr std::array kPieces = std::to_array<std::string_view>({
    "\0"sv,
    "\n"sv,
    "\r\n"sv,
    "\""sv,
    "\\"sv,
    "\\u0000"sv,
    "\\ud800"sv,
    "{"sv,
    "}"sv,
    "["sv,
    "]"sv,
    ","sv,
    ":"sv,
    " "sv,
    "\xc3\xa9"sv,
    "\xe2\x98\x83"sv,
    "\xf0\x9f\x99\x82"sv,
    "\xff"sv,
    "\xc0\x80"sv,
    "\xed\xa0\x80"sv,
    "\xf4\x90\x80\x80"sv,
    "\xe2\x96\x81"sv,
    "\xcc\x81"sv,
    "\xef\xbb\xbf"sv,
    "-"sv,
    "0"sv,
    "-1"sv,
    "1e400"sv,
    "2147483648"sv,
    "9223372036854775807"sv,
    "18446744073709551616"sv,
    "null"sv,
    "true"sv,
    "nan"sv,
    "\x7f"sv,
    "\x80"sv,
});

void change_once(std::string& bytes, Random& random) {
  const std::size_t at = random.below(bytes.size() + 1);
  const std::size_t length = std::min(1 + random.below(random.one_in(4) ? 64 : 8), bytes.size() - at);
  switch (random.below(8)) {
    case 0:
    case 1:
      if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8)));
      break;
    case 2:
      if (at < bytes.size()) bytes[at] = static_cast<char>(random.bits());
      break;
    case 3:
      bytes.erase(at, length);
      break;
    case 4:
      bytes.insert(at, bytes.substr(at, length));
      break;
    case 5:
      bytes.insert(at, random.pick(kPieces));
      break;
    case 6:
      bytes.replace(at, length, random.pick(kPieces));
      break;
    default: {
      const std::string piece = bytes.substr(at, length);
      bytes.insert(random.below(bytes.size() + 1), piece);
    }
  }
}

}  // namespace

std::string change_bytes(std::string input, Random& random) {
  for (std::size_t left = 1 + random.below(4); left > 0; --left) change_once(input, random);
  return input;
}

}  // namespace ptrt::fuzz
