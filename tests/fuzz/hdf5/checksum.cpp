#include "checksum.h"

#include <bit>
#include <cstring>

namespace ptrt {
namespace {

struct State {
  std::uint32_t a, b, c;

  void mix() {
    constexpr int kTurns[] = {4, 6, 8, 16, 19, 4};
    for (const int turn : kTurns) {
      a = (a - c) ^ std::rotl(c, turn);
      c += b;
      const State old = *this;  // the three take turns
      a = old.b, b = old.c, c = old.a;
    }
  }
  void finish() {
    c = (c ^ b) - std::rotl(b, 14);
    a = (a ^ c) - std::rotl(c, 11);
    b = (b ^ a) - std::rotl(a, 25);
    c = (c ^ b) - std::rotl(b, 16);
    a = (a ^ c) - std::rotl(c, 4);
    b = (b ^ a) - std::rotl(a, 14);
    c = (c ^ b) - std::rotl(b, 24);
  }
};

std::uint32_t word_at(std::span<const std::uint8_t> bytes, std::size_t at) {
  std::uint32_t word = 0;
  for (std::size_t i = 0; i < 4 && at + i < bytes.size(); ++i)
    word |= static_cast<std::uint32_t>(bytes[at + i]) << (8 * i);
  return word;
}

void repair(std::vector<std::uint8_t>& file, std::size_t begin, std::size_t end) {
  if (end < begin || end + 4 > file.size()) return;
  const std::uint32_t sum = lookup3(std::span(file).subspan(begin, end - begin));
  std::memcpy(&file[end], &sum, sizeof sum);
}

// Where the checksum of the object header at `begin` stands; 0 where none can.
std::size_t end_of_header(const std::vector<std::uint8_t>& file, std::size_t begin) {
  if (begin + 16 > file.size() || file[begin + 4] != 2) return 0;
  const std::uint8_t flags = file[begin + 5];
  std::size_t at = begin + 6 + ((flags & 0x20) != 0 ? 16 : 0) + ((flags & 0x10) != 0 ? 4 : 0);
  const std::size_t width = std::size_t{1} << (flags & 3);
  if (at + width > file.size()) return 0;
  std::uint64_t size = 0;
  std::memcpy(&size, &file[at], width);
  at += width;
  return size > file.size() || at + size + 4 > file.size() ? 0 : at + size;
}

}  // namespace

std::uint32_t lookup3(std::span<const std::uint8_t> bytes) {
  const auto start = 0xdeadbeefU + static_cast<std::uint32_t>(bytes.size());
  State state{start, start, start};
  std::size_t at = 0;
  for (; bytes.size() - at > 12; at += 12) {
    state.a += word_at(bytes, at), state.b += word_at(bytes, at + 4), state.c += word_at(bytes, at + 8);
    state.mix();
  }
  if (at == bytes.size()) return state.c;
  state.a += word_at(bytes, at), state.b += word_at(bytes, at + 4), state.c += word_at(bytes, at + 8);
  state.finish();
  return state.c;
}

void repair_checksums(std::vector<std::uint8_t>& file) {
  constexpr std::size_t kSuperblock = 44;
  if (file.size() > kSuperblock + 4 && (file[8] == 2 || file[8] == 3)) repair(file, 0, kSuperblock);
  for (std::size_t at = 0; at + 4 < file.size(); ++at)
    if (std::memcmp(&file[at], "OHDR", 4) == 0)
      if (const std::size_t end = end_of_header(file, at); end != 0) repair(file, at, end);
}

}  // namespace ptrt
