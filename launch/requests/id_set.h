// The ids of a request file, to find those that come twice. Only hashes of 128 bits are kept, of 16 bytes an
// id: among N different ids two have the same hash with a probability of N² / 2^129, which is 1.5e-27 for a
// million.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace ptrt {

class IdSet {
 public:
  // Grows as needed; with the number of `ids` known, not at all.
  explicit IdSet(std::size_t ids = 0);
  // False when the id is there already.
  bool insert(std::string_view id);

 private:
  struct Hash {
    std::uint64_t low = 0, high = 0;  // both 0: a free place
    bool operator==(const Hash&) const = default;
  };
  // The place of the hash, or the free one where it belongs.
  Hash& place_of(const Hash& hash);
  void grow();

  std::vector<Hash> table_;  // open addressing, linear probing
  std::size_t count_ = 0;
};

}  // namespace ptrt
