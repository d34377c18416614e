// Sound model files that mutations start from, and what they hold.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "model_io/file/model_file.h"

namespace ptrt {

struct Content {
  std::string config, tokenizer;
  struct Tensor {
    DType dtype;
    WeightLayout layout;
    std::vector<std::byte> bytes, scales;
    bool checked;  // each of the two has a checksum
  };
  std::map<std::string, Tensor> tensors;
};

struct Seed {
  std::string name;
  std::vector<std::string> files;                                          // the main one first
  std::vector<std::vector<std::uint8_t>> bytes;                            // of the files
  std::vector<std::vector<std::pair<std::size_t, std::size_t>>> datasets;  // of each file: first byte, end
  Content content;                                                         // empty: the file is damaged
};

// Reads everything, checksums included. Throws Error.
Content read_content(const ModelFile& file);

// Writes the seeds to folders below `folder`: as this program writes files and as others do, whole, split,
// chunked, big-endian, int8, float8, in panels; and takes the files of `corpus`.
std::vector<Seed> make_seeds(const std::string& folder, const std::string& corpus);

}  // namespace ptrt
