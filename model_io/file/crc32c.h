// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), the checksum of datasets.
#pragma once

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

// The checksum of a whole whose pieces come in any order and from several threads, each byte once.
class Crc32cOfPieces {
 public:
  explicit Crc32cOfPieces(std::size_t bytes) : bytes_(bytes) {}

  void add(std::size_t at, std::span<const std::byte> piece);
  bool complete() const { return added_ == bytes_; }
  std::uint32_t value() const { return crc_; }

 private:
  std::size_t bytes_;
  std::atomic<std::size_t> added_ = 0;
  std::atomic<std::uint32_t> crc_ = 0;
};

}  // namespace ptrt
