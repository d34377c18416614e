// What launches are fitted to, of the device that the process uses.
#pragma once

#include <cstddef>

namespace ptrt {

struct DeviceTraits {
  int multiprocessors = 0;
  std::size_t shared_bytes = 0;  // of a multiprocessor
  bool kernels_overlap = false;  // programmatic dependent launch: code of sm_90 and later
  bool has_wgmma = false;        // products of warpgroups: 9.0 alone

  // Blocks with that much dynamic shared memory each that a multiprocessor has room for.
  int blocks_with(std::size_t bytes) const {
    constexpr std::size_t kBeside = 2 << 10;  // of each block: the system's, and static memory
    return static_cast<int>(shared_bytes / (bytes + kBeside));
  }
};

// Of the current device when first called.
const DeviceTraits& device_traits();

}  // namespace ptrt
