#include "launch/requests/id_set.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

namespace ptrt {
namespace {

// At most three quarters of the table are in use.
constexpr std::size_t places_for(std::size_t ids) {
  return std::max<std::size_t>(64, ids + ids / 3 + 1);
}

}  // namespace

IdSet::IdSet(std::size_t ids) : table_(places_for(ids)) {}

bool IdSet::insert(std::string_view id) {
  const XXH128_hash_t made = XXH3_128bits(id.data(), id.size());
  Hash hash{made.low64, made.high64};
  if (hash == Hash{}) hash.low = 1;
  if (Hash& place = place_of(hash); place == hash)
    return false;
  else if (places_for(count_ + 1) <= table_.size())
    place = hash;
  else
    grow(), place_of(hash) = hash;
  count_++;
  return true;
}

IdSet::Hash& IdSet::place_of(const Hash& hash) {
  // The upper half of a product spreads hashes over a table of any size.
  const unsigned __int128 product = static_cast<unsigned __int128>(hash.high) * table_.size();
  for (auto at = static_cast<std::size_t>(product >> 64);; at = at + 1 == table_.size() ? 0 : at + 1)
    if (table_[at] == Hash{} || table_[at] == hash) return table_[at];
}

void IdSet::grow() {
  const std::vector<Hash> old = std::exchange(table_, std::vector<Hash>(places_for(2 * count_ + 64)));
  for (const Hash& hash : old)
    if (hash != Hash{}) place_of(hash) = hash;
}

}  // namespace ptrt
