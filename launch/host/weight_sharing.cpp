#include "launch/host/weight_sharing.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <vector>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

constexpr char kTrial[] = "a trial of shared memory";

WeightGroup group_of(const std::vector<std::string>& weights, std::size_t mine) {
  WeightGroup group;
  if (weights[mine].empty()) return group;
  group.ranks = static_cast<int>(std::ranges::count(weights, weights[mine]));
  group.leader = static_cast<int>(std::ranges::find(weights, weights[mine]) - weights.begin());
  group.leads = group.leader == static_cast<int>(mine);
  return group;
}

// A small block with known content.
std::string offer_trial(WeightMemory& memory, std::shared_ptr<std::byte[]>& block) {
  try {
    memory.offer();
    block = memory.allocate(sizeof kTrial, "a trial");
    std::memcpy(block.get(), kTrial, sizeof kTrial);
    return memory.description();
  } catch (const Error&) {
    return "";
  }
}

// Empty where the leader's block is there.
std::string try_trial(const std::string& description) {
  if (description.empty()) return "the system has no memory that processes can share";
  try {
    WeightMemory memory;
    memory.adopt(description);
    const auto block = memory.allocate(sizeof kTrial, "a trial");
    return std::memcmp(block.get(), kTrial, sizeof kTrial) == 0 ? "" : "shared memory has other content";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace

WeightGroup agree_on_weight_group(JobComm& job, const std::string& weights) {
  const std::vector<std::string> all = job.all_gather_on_host(weights);
  WeightGroup group = group_of(all, static_cast<std::size_t>(job.host_rank()));
  WeightMemory memory;
  std::shared_ptr<std::byte[]> block;
  const std::string trial = take_from_leader(
      job, group, group.ranks > 1 && group.leads ? offer_trial(memory, block) : std::string());
  const std::string obstacle = group.ranks > 1 && !group.leads ? try_trial(trial) : "";
  const std::vector<std::string> obstacles = job.all_gather_on_host(obstacle);
  for (std::size_t rank = 0; group.ranks > 1 && rank < all.size(); rank++)
    if (all[rank] == weights && !obstacles[rank].empty())
      return {.ranks = 1, .leader = job.host_rank(), .leads = true, .why_not = obstacles[rank]};
  return group;
}

std::string take_from_leader(JobComm& job, const WeightGroup& group, const std::string& mine) {
  return job.all_gather_on_host(group.leads ? mine : std::string())[static_cast<std::size_t>(group.leader)];
}

}  // namespace ptrt
