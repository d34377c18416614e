#include "runtime/speculate/ngram_index.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

std::uint64_t hash_of(std::span<const std::int32_t> tokens) {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (const std::int32_t token : tokens) {
    hash = (hash ^ static_cast<std::uint32_t>(token)) * 0x9e3779b97f4a7c15ull;
    hash ^= hash >> 29;
  }
  return hash;
}

}  // namespace

// The occurrence at the very end is not added: it is what is looked for.
void NgramIndex::add_until(std::span<const std::int32_t> tokens, std::size_t end) {
  for (; added_ < end; added_++)
    for (std::size_t i = 0; i < kLengths.size(); i++)
      if (added_ + 1 >= kLengths[i])
        next_[i][hash_of(tokens.subspan(added_ + 1 - kLengths[i], kLengths[i]))] =
            static_cast<std::uint32_t>(added_ + 1);
}

bool NgramIndex::find(std::span<const std::int32_t> tokens, Match& match) {
  if (tokens.empty()) return false;
  PTRT_CHECK(added_ < tokens.size());
  add_until(tokens, tokens.size() - 1);
  for (std::size_t i = 0; i < kLengths.size(); i++) {
    if (tokens.size() < kLengths[i]) continue;
    const auto last = tokens.last(kLengths[i]);
    const auto found = next_[i].find(hash_of(last));
    if (found == next_[i].end()) continue;
    // Of equal hashes the tokens may differ.
    if (!std::ranges::equal(tokens.first(found->second).last(kLengths[i]), last)) continue;
    match = {i, found->second};
    return true;
  }
  return false;
}

}  // namespace ptrt
