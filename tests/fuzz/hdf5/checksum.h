// The checksum of HDF5's newer metadata (Jenkins' lookup3), and its repair in a changed file, so that a change
// comes past it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ptrt {

std::uint32_t lookup3(std::span<const std::uint8_t> bytes);

// Of the superblock and of each object header's first block.
void repair_checksums(std::vector<std::uint8_t>& file);

}  // namespace ptrt
