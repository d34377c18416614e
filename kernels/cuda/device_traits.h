// What launches are fitted to, of the device that the process uses.
#pragma once

#include <cstddef>

namespace ptrt {

struct DeviceTraits {
  int multiprocessors = 0;
  std::size_t shared_bytes = 0;        // of a multiprocessor
  std::size_t block_shared_bytes = 0;  // that a block can ask for
  bool kernels_overlap = false;        // programmatic dependent launch: code of sm_90 and later
  bool has_wgmma = false;              // products of warpgroups: 9.0 alone
};

// Of the current device when first called.
const DeviceTraits& device_traits();

}  // namespace ptrt
