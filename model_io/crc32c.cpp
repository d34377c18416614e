#include "model_io/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace ptrt {
namespace {

constexpr std::uint32_t kPolynomial = 0x82f63b78;

using ByteTables = std::array<std::array<std::uint32_t, 256>, 8>;

// tables[k][b]: what byte b contributes to the remainder once k more bytes have passed.
constexpr ByteTables make_byte_tables() {
  ByteTables tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (std::size_t k = 1; k < 8; ++k)
    for (std::size_t byte = 0; byte < 256; ++byte)
      tables[k][byte] = (tables[k - 1][byte] >> 8) ^ tables[0][tables[k - 1][byte] & 0xff];
  return tables;
}

constexpr ByteTables kByteTables = make_byte_tables();

std::uint64_t load_word(const std::byte* p) {
  std::uint64_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

// The product of two polynomials modulo the checksum's; bit 31 is x^0.
constexpr std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product = 0;
  for (std::uint32_t bit = std::uint32_t{1} << 31; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = (b >> 1) ^ ((b & 1) != 0 ? kPolynomial : 0);
  }
  return product;
}

using BytePowers = std::array<std::uint32_t, 64>;

// powers[k] = x^(8 · 2^k), by which 2^k further bytes multiply a remainder.
constexpr BytePowers make_byte_powers() {
  BytePowers powers{};
  powers[0] = std::uint32_t{1} << (31 - 8);
  for (std::size_t k = 1; k < powers.size(); ++k) powers[k] = multiply(powers[k - 1], powers[k - 1]);
  return powers;
}

constexpr BytePowers kBytePowers = make_byte_powers();

std::uint32_t step_byte(std::uint32_t state, std::byte byte) {
  return kByteTables[0][(state ^ static_cast<std::uint32_t>(byte)) & 0xff] ^ (state >> 8);
}

#if defined(__x86_64__)

// The instruction has a latency of three cycles and a throughput of one, so three neighbouring stretches of
// kStretch bytes run side by side. Their remainders are joined by moving the earlier one past kStretch zero
// bytes, a linear map over GF(2) kept as four tables, one a byte of the remainder.
constexpr std::size_t kStretch = 4096;

using ZerosTable = std::array<std::array<std::uint32_t, 256>, 4>;

ZerosTable make_zeros_table() {
  std::array<std::uint32_t, 32> image{};  // of each single bit
  for (std::size_t bit = 0; bit < 32; ++bit) image[bit] = crc32c_before(std::uint32_t{1} << bit, kStretch);
  ZerosTable table{};
  for (std::size_t k = 0; k < 4; ++k)
    for (std::size_t byte = 0; byte < 256; ++byte)
      for (std::size_t bit = 0; bit < 8; ++bit)
        if ((byte >> bit & 1) != 0) table[k][byte] ^= image[8 * k + bit];
  return table;
}

std::uint32_t past_zeros(const ZerosTable& table, std::uint32_t state) {
  return table[0][state & 0xff] ^ table[1][state >> 8 & 0xff] ^ table[2][state >> 16 & 0xff] ^
         table[3][state >> 24];
}

__attribute__((target("sse4.2"))) std::uint32_t crc32c_sse42(std::uint32_t crc,
                                                             std::span<const std::byte> bytes) {
  static const ZerosTable zeros = make_zeros_table();
  const std::byte* p = bytes.data();
  std::size_t left = bytes.size();
  std::uint64_t state = ~crc;
  for (; left >= 3 * kStretch; left -= 3 * kStretch, p += 3 * kStretch) {
    std::uint64_t second = 0, third = 0;
    for (std::size_t i = 0; i < kStretch; i += 8) {
      state = _mm_crc32_u64(state, load_word(p + i));
      second = _mm_crc32_u64(second, load_word(p + kStretch + i));
      third = _mm_crc32_u64(third, load_word(p + 2 * kStretch + i));
    }
    state = past_zeros(zeros, static_cast<std::uint32_t>(state)) ^ second;
    state = past_zeros(zeros, static_cast<std::uint32_t>(state)) ^ third;
  }
  for (; left >= 8; left -= 8, p += 8) state = _mm_crc32_u64(state, load_word(p));
  auto tail = static_cast<std::uint32_t>(state);
  for (; left > 0; --left, ++p) tail = _mm_crc32_u8(tail, static_cast<std::uint8_t>(*p));
  return ~tail;
}

#endif

}  // namespace

std::uint32_t crc32c_portable(std::uint32_t crc, std::span<const std::byte> bytes) {
  const std::byte* p = bytes.data();
  std::size_t left = bytes.size();
  std::uint32_t state = ~crc;
  for (; left >= 8; left -= 8, p += 8) {
    const std::uint64_t word = load_word(p) ^ state;
    state = 0;
    for (std::size_t k = 0; k < 8; ++k) state ^= kByteTables[7 - k][word >> (8 * k) & 0xff];
  }
  for (; left > 0; --left, ++p) state = step_byte(state, *p);
  return ~state;
}

std::uint32_t crc32c(std::uint32_t crc, std::span<const std::byte> bytes) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  if (has_instruction) return crc32c_sse42(crc, bytes);
#endif
  return crc32c_portable(crc, bytes);
}

std::uint32_t crc32c_before(std::uint32_t crc, std::uint64_t bytes) {
  for (std::size_t k = 0; bytes != 0; ++k, bytes >>= 1)
    if ((bytes & 1) != 0) crc = multiply(kBytePowers[k], crc);
  return crc;
}

void Crc32cOfPieces::add(std::size_t at, std::span<const std::byte> piece) {
  crc_ ^= crc32c_before(crc32c(0, piece), bytes_ - at - piece.size());
  added_ += piece.size();
}

}  // namespace ptrt
