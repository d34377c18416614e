// What the datasets of one model must have in common; damage of a file's structure shows where they do not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "model_io/file/tensor_reader.h"
#include "model_io/hdf5/h5_file.h"

namespace ptrt {

class DatasetConsistency {
 public:
  // Throws bad_input where the dataset's byte order is not that of the others, or its bytes are also those
  // of another dataset, of which it is not merely a second link.
  void check(const StoredDataset& stored, const H5DatasetInfo& info, std::size_t element_bytes);

 private:
  struct Seen {
    std::string name;
    std::size_t bytes = 0;
    std::uint64_t header = 0;
  };

  void check_order(const StoredDataset& stored, bool big_endian);
  void check_place(const StoredDataset& stored, const H5DatasetInfo& info);

  std::string first_little_, first_big_;                            // names of datasets; empty: none yet
  std::map<std::string, std::map<std::uint64_t, Seen>> by_offset_;  // by file, then by first byte
  std::map<std::pair<std::string, std::uint64_t>, std::string> by_header_;
};

}  // namespace ptrt
