#include "model_io/file/crc32c.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string_view>
#include <vector>

namespace ptrt {
namespace {

std::vector<std::byte> noise(std::size_t size) {
  std::vector<std::byte> bytes(size);
  std::uint32_t state = 12345;
  for (std::byte& byte : bytes) byte = static_cast<std::byte>((state = state * 1664525 + 1013904223) >> 24);
  return bytes;
}

// Bit by bit, as the polynomial is defined.
std::uint32_t crc32c_bitwise(std::uint32_t crc, std::span<const std::byte> bytes) {
  crc = ~crc;
  for (const std::byte byte : bytes) {
    crc ^= static_cast<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78 : 0);
  }
  return ~crc;
}

TEST(Crc32c, KnownVectors) {
  EXPECT_EQ(crc32c(0, std::as_bytes(std::span(std::string_view("123456789")))), 0xe3069283u);
  EXPECT_EQ(crc32c(0, {}), 0u);
  // RFC 3720, B.4.
  std::vector<std::byte> bytes(32, std::byte{0});
  EXPECT_EQ(crc32c(0, bytes), 0x8a9136aau);
  bytes.assign(32, std::byte{0xff});
  EXPECT_EQ(crc32c(0, bytes), 0x62a8ab43u);
  for (std::size_t i = 0; i < 32; ++i) bytes[i] = static_cast<std::byte>(i);
  EXPECT_EQ(crc32c(0, bytes), 0x46dd794eu);
  for (std::size_t i = 0; i < 32; ++i) bytes[i] = static_cast<std::byte>(31 - i);
  EXPECT_EQ(crc32c(0, bytes), 0x113fdb5cu);
}

TEST(Crc32c, EveryLengthAndAlignment) {
  const std::vector<std::byte> bytes = noise(50000);
  for (const std::size_t offset : {0, 1, 3, 7}) {
    for (const std::size_t size : {1, 2, 7, 8, 9, 15, 63, 4096, 12287, 12288, 12289, 24576, 40001}) {
      const auto part = std::span<const std::byte>(bytes).subspan(offset, size);
      EXPECT_EQ(crc32c(0, part), crc32c_bitwise(0, part)) << offset << " " << size;
    }
  }
}

TEST(Crc32c, ContinuesFromWhereItStopped) {
  const std::vector<std::byte> bytes = noise(40000);
  const std::uint32_t whole = crc32c_bitwise(0, bytes);
  for (const std::size_t cut : {0, 1, 13, 12288, 39999, 40000}) {
    const std::span<const std::byte> all(bytes);
    EXPECT_EQ(crc32c(crc32c(0, all.first(cut)), all.subspan(cut)), whole) << cut;
  }
}

TEST(Crc32cOfParts, JoinsAFirstPartAndTheRest) {
  const std::vector<std::byte> bytes = noise(70000);
  const std::span<const std::byte> all(bytes);
  for (const std::size_t cut : {0, 1, 13, 255, 4096, 65536, 69999, 70000})
    EXPECT_EQ(crc32c_before(crc32c(0, all.first(cut)), all.size() - cut) ^ crc32c(0, all.subspan(cut)),
              crc32c_bitwise(0, all))
        << cut;
}

TEST(Crc32cOfParts, TakesPiecesInAnyOrder) {
  const std::vector<std::byte> bytes = noise(10000);
  const std::span<const std::byte> all(bytes);
  for (const std::vector<std::size_t>& order :
       {std::vector<std::size_t>{0, 1, 2, 3}, {3, 2, 1, 0}, {2, 0, 3, 1}}) {
    constexpr std::size_t kCuts[] = {0, 1, 4000, 4013, 10000};
    Crc32cOfPieces pieces(all.size());
    for (const std::size_t i : order) {
      EXPECT_FALSE(pieces.complete());
      pieces.add(kCuts[i], all.subspan(kCuts[i], kCuts[i + 1] - kCuts[i]));
    }
    EXPECT_TRUE(pieces.complete());
    EXPECT_EQ(pieces.value(), crc32c_bitwise(0, all));
  }
}

TEST(Crc32cOfParts, AdvancesByATable) {
  for (const std::uint64_t bytes : {0ull, 1ull, 7ull, 4096ull, 1000003ull, 1ull << 40}) {
    const Crc32cAdvance advance(bytes);
    for (const std::uint32_t crc : {0u, 1u, 0x80000000u, 0xffu, 0x12345678u, 0xe3069283u, 0xffffffffu})
      EXPECT_EQ(advance(crc), crc32c_before(crc, bytes)) << bytes << " " << crc;
  }
}

// Two ranks have every other strip of 16 bytes of a matrix of 50 rows.
TEST(Crc32cOfParts, AddsUpOverRanks) {
  const std::vector<std::byte> bytes = noise(1600);
  const std::span<const std::byte> all(bytes);
  const Crc32cAdvance row(32);
  std::uint32_t whole = 0;
  for (const std::size_t rank : {0, 1}) {
    std::uint32_t crc = 0;
    for (std::size_t at = 16 * rank; at < all.size(); at += 32)
      crc = row(crc) ^ crc32c(0, all.subspan(at, 16));
    Crc32cOfPieces pieces(all.size());
    pieces.add_contribution(crc, 800, 1584 + 16 * rank);
    EXPECT_FALSE(pieces.complete());
    EXPECT_EQ(pieces.added(), 800u);
    whole ^= pieces.value();
  }
  EXPECT_EQ(whole, crc32c_bitwise(0, all));
}

}  // namespace
}  // namespace ptrt
