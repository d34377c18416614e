// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), the checksum that datasets bear.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace ptrt {

// Checksum of the bytes whose checksum so far is `crc` followed by `bytes`; start with 0. crc32c of
// "123456789" is 0xe3069283. Uses the processor's instruction where it has one (SSE4.2).
std::uint32_t crc32c(std::uint32_t crc, std::span<const std::byte> bytes);

// The same by tables, on any processor.
std::uint32_t crc32c_portable(std::uint32_t crc, std::span<const std::byte> bytes);

}  // namespace ptrt
