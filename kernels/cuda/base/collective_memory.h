// The device memory that collectives between ranks read and write. A kernel that writes there does not trigger its
// successor early (launch.h): the successor may be a kernel of NCCL, and those of 2.28.0 to 2.30.6 that work on symmetric
// windows are launched so that they may overlap and do not wait. This is the second line of defence. Without a trigger the
// successor starts when all blocks have ended, but only griddepcontrol.wait promises that it sees what they wrote; the
// first line is that these versions get no symmetric memory (nccl_version.h). docs/CUDA.md has what NCCL's source says.
#pragma once

#include <cstddef>

namespace ptrt::cuda {

// Registers [data, data + bytes) while it lives. Any thread.
class CollectiveMemory {
 public:
  CollectiveMemory(const void* data, std::size_t bytes);
  ~CollectiveMemory();
  CollectiveMemory(const CollectiveMemory&) = delete;
  CollectiveMemory& operator=(const CollectiveMemory&) = delete;

 private:
  const void* data_;
};

// Whether `data` lies in registered memory.
bool in_collective_memory(const void* data);
// Whether a kernel that writes `out` may trigger its successor before it has written.
inline bool may_trigger_early(const void* out) {
  return !in_collective_memory(out);
}

}  // namespace ptrt::cuda
