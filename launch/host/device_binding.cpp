#include "launch/host/device_binding.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <sstream>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

std::string name_ranks(const std::vector<int>& ranks) {
  return fmt::format("{} and {}", fmt::join(ranks.begin(), ranks.end() - 1, ", "), ranks.back());
}

}  // namespace

GpuChoice choose_gpu(std::span<const HostGpus> ranks, std::size_t mine, bool share) {
  PTRT_CHECK(mine < ranks.size());
  std::map<std::string, std::vector<int>> users;  // ranks on each GPU
  for (const HostGpus& rank : ranks)
    for (const std::string& uuid : rank.uuids) users.try_emplace(uuid);
  GpuChoice choice;
  std::string taken;
  for (std::size_t r = 0; r < ranks.size(); r++) {
    const auto& [rank, uuids] = ranks[r];
    if (uuids.empty()) throw_bad_input("rank {} sees no GPU", rank);
    const auto least =
        std::ranges::min_element(uuids, {}, [&](const std::string& uuid) { return users.at(uuid).size(); });
    std::vector<int>& on_gpu = users.at(*least);
    on_gpu.push_back(rank);
    if (on_gpu.size() > 1 && !share)
      throw_bad_input(
          "ranks {} of this host would share the GPU {}: its {} ranks see {} GPUs; start one rank a GPU, "
          "make one GPU visible to each rank, or give --share-gpu",
          name_ranks(on_gpu), *least, ranks.size(), users.size());
    if (r != mine) continue;
    choice.device = static_cast<int>(least - uuids.begin());
    taken = *least;
  }
  choice.sharers = static_cast<int>(users.at(taken).size());
  return choice;
}

std::string to_text(const HostGpus& gpus) {
  return fmt::format("{} {}", gpus.rank, fmt::join(gpus.uuids, " "));
}

HostGpus parse_host_gpus(const std::string& text) {
  HostGpus gpus;
  std::istringstream in(text);
  in >> gpus.rank;
  for (std::string uuid; in >> uuid;) gpus.uuids.push_back(uuid);
  return gpus;
}

}  // namespace ptrt
