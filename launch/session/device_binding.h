// Which GPU a rank takes, of those that it and the other ranks of its host see.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ptrt {

// One rank of a host, in node-local order.
struct HostGpus {
  int rank = 0;                    // in the job
  std::vector<std::string> uuids;  // of the GPUs that it sees, in its order
};

struct GpuChoice {
  int device = 0;   // among those that the rank sees
  int sharers = 1;  // ranks of the host on that GPU, this one included
};

// Each rank in turn takes the first GPU it sees that no rank before it has: with all GPUs visible, the one of
// its node-local rank; where the launcher shows every rank its own, device 0. Throws bad_input where there is
// none left, and names the ranks that would share one; with `share` it takes the GPU of the fewest ranks.
GpuChoice choose_gpu(std::span<const HostGpus> ranks, std::size_t mine, bool share);

// One rank's line in an exchange between the ranks of a host.
std::string to_text(const HostGpus& gpus);
HostGpus parse_host_gpus(const std::string& text);

}  // namespace ptrt
