// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), the checksum of datasets.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ptrt {

// Checksum of the bytes whose checksum so far is `crc` followed by `bytes`; start with 0. crc32c of
// "123456789" is 0xe3069283. By ISA-L, with what instructions the processor has.
std::uint32_t crc32c(std::uint32_t crc, std::span<const std::byte> bytes);

// What the checksum `crc` of a first part contributes to the checksum of the whole when `bytes`
// more follow: crc32c(0, a + b) is crc32c_before(crc32c(0, a), size of b) ^ crc32c(0, b).
std::uint32_t crc32c_before(std::uint32_t crc, std::uint64_t bytes);

// crc32c_before() for one number of bytes, by a table: for runs of pieces with constant gaps.
class Crc32cAdvance {
 public:
  explicit Crc32cAdvance(std::uint64_t bytes);
  std::uint64_t bytes() const { return bytes_; }
  std::uint32_t operator()(std::uint32_t crc) const {
    return table_[0][crc & 0xff] ^ table_[1][crc >> 8 & 0xff] ^ table_[2][crc >> 16 & 0xff] ^
           table_[3][crc >> 24];
  }

 private:
  std::uint64_t bytes_;
  std::array<std::array<std::uint32_t, 256>, 4> table_;  // by byte of the checksum
};

// The checksum of a whole whose pieces come in any order and from several threads, each byte once.
class Crc32cOfPieces {
 public:
  explicit Crc32cOfPieces(std::size_t bytes) : bytes_(bytes) {}

  void add(std::size_t at, std::span<const std::byte> piece);
  // `crc` is what `bytes` bytes, the last of them just before `end`, contribute to a whole that ends there.
  void add_contribution(std::uint32_t crc, std::size_t bytes, std::size_t end);
  bool complete() const { return added_ == bytes_; }
  std::size_t added() const { return added_; }
  // Of the whole where it is complete, else what the pieces so far contribute to it: those of several objects
  // that add up to the whole give its checksum by exclusive or.
  std::uint32_t value() const { return crc_; }

 private:
  std::size_t bytes_;
  std::atomic<std::size_t> added_ = 0;
  std::atomic<std::uint32_t> crc_ = 0;
};

}  // namespace ptrt
