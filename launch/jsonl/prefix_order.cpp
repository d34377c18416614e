#include "launch/jsonl/prefix_order.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

#include "kernels/kv_pool.h"

namespace ptrt {

void PrefixOrder::add(std::int64_t line, std::span<const std::int32_t> prompt) {
  Keys keys;
  for (std::int64_t tokens = kPageTokens; tokens <= std::ssize(prompt); tokens *= 2) {
    const auto bytes = static_cast<std::size_t>(tokens) * sizeof(std::int32_t);
    keys.push_back(XXH3_64bits_withSeed(prompt.data(), bytes, keys.size()));
    by_key_[keys.back()].insert(line);
  }
  lines_.add(line, std::move(keys));
  newest_ = line;
}

std::optional<std::int64_t> PrefixOrder::next_alike(std::int64_t replica) const {
  const Group& group = groups_[static_cast<std::size_t>(replica)];
  for (auto key = group.keys.rbegin(); key != group.keys.rend(); ++key)
    if (const auto found = by_key_.find(*key); found != by_key_.end())
      if (const std::int64_t first = *found->second.begin(); first <= group.newest) return first;
  return std::nullopt;
}

std::int64_t PrefixOrder::next_other(std::int64_t replica) const {
  const auto likeness = [&](const Keys& keys) {
    std::size_t most = 0;
    for (std::size_t r = 0; r < groups_.size(); r++)
      if (static_cast<std::int64_t>(r) != replica) most = std::max(most, common(keys, groups_[r].keys));
    return most;
  };
  std::int64_t best = lines_.first();
  std::size_t least = likeness(*lines_.find(best));
  for (const auto& [line, keys] : lines_.entries()) {
    if (least == 0) break;
    if (!keys) continue;
    if (const std::size_t likes = likeness(*keys); likes < least) {
      least = likes;
      best = line;
    }
  }
  return best;
}

void PrefixOrder::take(std::int64_t replica, std::int64_t line) {
  Group& group = groups_[static_cast<std::size_t>(replica)];
  Keys keys = lines_.take(line);
  for (const std::uint64_t key : keys) {
    const auto lines = by_key_.find(key);
    lines->second.erase(line);
    if (lines->second.empty()) by_key_.erase(lines);
  }
  if (common(keys, group.keys) == 0 || line > group.newest) group.newest = newest_;
  group.keys = std::move(keys);
}

std::size_t PrefixOrder::common(const Keys& a, const Keys& b) {
  std::size_t count = 0;
  while (count < std::min(a.size(), b.size()) && a[count] == b[count]) count++;
  return count;
}

}  // namespace ptrt
