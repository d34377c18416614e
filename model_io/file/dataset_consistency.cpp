#include "model_io/file/dataset_consistency.h"

#include <iterator>

#include "kernels/base/error.h"

namespace ptrt {

void DatasetConsistency::check(const StoredDataset& stored, const H5DatasetInfo& info,
                               std::size_t element_bytes) {
  if (element_bytes > 1) check_order(stored, info.big_endian);
  check_place(stored, info);
}

void DatasetConsistency::check_order(const StoredDataset& stored, bool big_endian) {
  std::string& same = big_endian ? first_big_ : first_little_;
  const std::string& other = big_endian ? first_little_ : first_big_;
  if (same.empty()) same = stored.name;
  if (!other.empty())
    throw_bad_input("{}: dataset {} is {}-endian and {} is not: one of them has a damaged type", stored.file,
                    stored.name, big_endian ? "big" : "little", other);
}

// A header counts the links that lead to it: a damaged link or address makes two of one.
void DatasetConsistency::check_place(const StoredDataset& stored, const H5DatasetInfo& info) {
  const auto [known, added] = by_header_.try_emplace({stored.file, info.header}, stored.name);
  if (!added && known->second != stored.name && info.links < 2)
    throw_bad_input("{}: {} and {} lead to one dataset that counts one link: the file is damaged",
                    stored.file, known->second, stored.name);
  if (!info.offset || stored.bytes == 0) return;
  auto& places = by_offset_[stored.file];
  const auto next = places.lower_bound(*info.offset + stored.bytes);
  if (next != places.begin()) {
    const auto& [offset, seen] = *std::prev(next);
    if (seen.header == info.header) return;
    if (offset + seen.bytes > *info.offset)
      throw_bad_input("{}: datasets {} and {} have bytes in common: the file is damaged", stored.file,
                      seen.name, stored.name);
  }
  places.emplace(*info.offset, Seen{stored.name, stored.bytes, info.header});
}

}  // namespace ptrt
