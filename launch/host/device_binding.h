// Which of the visible GPUs each rank of a host uses.
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

// Each rank in turn takes the first GPU it sees that no rank before it has taken; where none is left, ranks before it
// take others if they can. With all GPUs visible that is the one of its node-local rank; where the launcher shows every
// rank its own GPU, it is device 0. Where no GPU can be left, throws bad_input that names the ranks which would share
// one; with `share` the rank takes the GPU of the fewest ranks.
GpuChoice choose_gpu(std::span<const HostGpus> ranks, std::size_t mine, bool share);

// A rank's line in the exchange between the ranks of a host.
std::string to_text(const HostGpus& gpus);
HostGpus parse_host_gpus(const std::string& text);

}  // namespace ptrt
