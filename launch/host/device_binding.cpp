#include "launch/host/device_binding.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

std::string name_ranks(const std::vector<int>& ranks) {
  return fmt::format("{} and {}", fmt::join(ranks.begin(), ranks.end() - 1, ", "), ranks.back());
}

// A GPU of its own for each rank that can have one (a matching in the graph of ranks and the GPUs they see).
class Dealing {
 public:
  explicit Dealing(std::span<const HostGpus> ranks) : ranks_(ranks) {}

  // A GPU for `rank`, for which ranks before it may get others.
  bool deal(std::size_t rank) {
    std::set<std::string> tried;
    return deal(rank, tried);
  }
  void share(std::size_t rank, const std::string& uuid) { users_[uuid].push_back(rank); }

  const std::vector<std::size_t>& users(const std::string& uuid) { return users_[uuid]; }
  std::size_t gpus() const {
    std::set<std::string> all;
    for (const HostGpus& rank : ranks_) all.insert(rank.uuids.begin(), rank.uuids.end());
    return all.size();
  }

 private:
  bool deal(std::size_t rank, std::set<std::string>& tried) {
    for (const std::string& uuid : ranks_[rank].uuids)
      if (users_[uuid].empty()) {
        users_[uuid] = {rank};
        return true;
      }
    for (const std::string& uuid : ranks_[rank].uuids)
      if (tried.insert(uuid).second && deal(users_[uuid].front(), tried)) {
        users_[uuid] = {rank};
        return true;
      }
    return false;
  }

  std::span<const HostGpus> ranks_;
  std::map<std::string, std::vector<std::size_t>> users_;  // by place among the ranks
};

}  // namespace

GpuChoice choose_gpu(std::span<const HostGpus> ranks, std::size_t mine, bool share) {
  PTRT_CHECK(mine < ranks.size());
  Dealing dealing(ranks);
  std::vector<std::size_t> without;
  for (std::size_t r = 0; r < ranks.size(); r++) {
    if (ranks[r].uuids.empty()) throw_bad_input("rank {} sees no GPU", ranks[r].rank);
    if (!dealing.deal(r)) without.push_back(r);
  }
  for (const std::size_t r : without) {
    const std::string& least = *std::ranges::min_element(
        ranks[r].uuids, {}, [&](const std::string& uuid) { return dealing.users(uuid).size(); });
    dealing.share(r, least);
    if (share) continue;
    std::vector<int> sharers;
    for (const std::size_t user : dealing.users(least)) sharers.push_back(ranks[user].rank);
    throw_bad_input(
        "ranks {} of this host would share the GPU {}: its {} ranks see {} GPUs; start one rank a GPU, "
        "make one GPU visible to each rank, or give --share-gpu",
        name_ranks(sharers), least, ranks.size(), dealing.gpus());
  }
  const std::vector<std::string>& seen = ranks[mine].uuids;
  const auto taken = std::ranges::find_if(
      seen, [&](const std::string& uuid) { return std::ranges::count(dealing.users(uuid), mine) > 0; });
  return {static_cast<int>(taken - seen.begin()), static_cast<int>(dealing.users(*taken).size())};
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
