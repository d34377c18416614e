// Properties of the current device that launches depend on.
#pragma once

#include <cstddef>

namespace ptrt {

struct DeviceTraits {
  int multiprocessors = 0;
  std::size_t shared_bytes = 0;  // per multiprocessor
  bool has_pdl = false;          // programmatic dependent launch: device and code of sm_90 or later
  bool has_clusters = false;     // of thread blocks, likewise
  bool has_wgmma = false;        // compute capability 9.0 only

  // How many blocks with `bytes` of dynamic shared memory each fit on a multiprocessor.
  int blocks_per_multiprocessor(std::size_t bytes) const {
    constexpr std::size_t kReserved = 2 << 10;  // per block: the system's share and static memory
    return static_cast<int>(shared_bytes / (bytes + kReserved));
  }
};

// Of the device that is current at the first call.
const DeviceTraits& device_traits();

// For measurements of what they gain. From here on launches have clusters, where the device has them, or none.
void use_clusters(bool use);

}  // namespace ptrt
