#include "model_io/file/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <array>
#include <bit>

namespace ptrt {
namespace {

constexpr std::uint32_t kPolynomial = 0x82f63b78;
constexpr std::uint32_t kOne = std::uint32_t{1} << 31;     // x^0: bits are reflected
constexpr std::size_t kMostAtOnce = std::size_t{1} << 30;  // the library counts in int

// The product of two polynomials modulo the checksum's.
constexpr std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product = 0;
  for (std::uint32_t bit = kOne; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = (b >> 1) ^ ((b & 1) != 0 ? kPolynomial : 0);
  }
  return product;
}

using BytePowers = std::array<std::uint32_t, 64>;

// powers[k] = x^(8 · 2^k), by which 2^k further bytes multiply a remainder.
constexpr BytePowers make_byte_powers() {
  BytePowers powers{};
  powers[0] = kOne >> 8;
  for (std::size_t k = 1; k < powers.size(); ++k) powers[k] = multiply(powers[k - 1], powers[k - 1]);
  return powers;
}

constexpr BytePowers kBytePowers = make_byte_powers();

}  // namespace

std::uint32_t crc32c(std::uint32_t crc, std::span<const std::byte> bytes) {
  std::uint32_t state = ~crc;  // the library leaves both inversions to its caller
  while (!bytes.empty()) {
    const auto part = bytes.first(std::min(bytes.size(), kMostAtOnce));
    auto* data = const_cast<std::byte*>(part.data());  // only read; the declaration lacks const
    state = ::crc32_iscsi(reinterpret_cast<unsigned char*>(data), static_cast<int>(part.size()), state);
    bytes = bytes.subspan(part.size());
  }
  return ~state;
}

std::uint32_t crc32c_before(std::uint32_t crc, std::uint64_t bytes) {
  for (std::size_t k = 0; bytes != 0; ++k, bytes >>= 1)
    if ((bytes & 1) != 0) crc = multiply(kBytePowers[k], crc);
  return crc;
}

// Linear in the checksum: entries of single bits first, each the one before times x, then their sums.
Crc32cAdvance::Crc32cAdvance(std::uint64_t bytes) : bytes_(bytes) {
  std::array<std::uint32_t, 32> of_bit;
  of_bit[31] = crc32c_before(kOne, bytes);
  for (std::size_t bit = 31; bit > 0; --bit)
    of_bit[bit - 1] = (of_bit[bit] >> 1) ^ ((of_bit[bit] & 1) != 0 ? kPolynomial : 0);
  for (std::size_t byte = 0; byte < 4; ++byte) {
    auto& entries = table_[byte];
    entries[0] = 0;
    for (std::size_t value = 1; value < entries.size(); ++value) {
      const auto lowest = static_cast<std::size_t>(std::countr_zero(value));
      entries[value] = entries[value & (value - 1)] ^ of_bit[8 * byte + lowest];
    }
  }
}

void Crc32cOfPieces::add(std::size_t at, std::span<const std::byte> piece) {
  add_contribution(crc32c(0, piece), piece.size(), at + piece.size());
}

void Crc32cOfPieces::add_contribution(std::uint32_t crc, std::size_t bytes, std::size_t end) {
  crc_ ^= crc32c_before(crc, bytes_ - end);
  added_ += bytes;
}

}  // namespace ptrt
