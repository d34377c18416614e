// Changes to the files of a model: of bits and bytes, and of objects through the HDF5 library.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "seeds.h"

namespace ptrt {

using Random = std::mt19937_64;

// One to four changes of bits, bytes, numbers and blocks, mostly outside of the datasets' own bytes; half of
// the time checksums of the metadata are repaired.
void change_bytes(std::vector<std::uint8_t>& file,
                  const std::vector<std::pair<std::size_t, std::size_t>>& datasets, Random& random);

struct ObjectChange {
  std::string what;        // for messages
  bool forbidden = false;  // takes data from outside: a reader must refuse the file
};

// One change of a dataset, attribute or link of a sound file, as any program with the library may make.
ObjectChange change_object(const std::string& file, const Content& content, Random& random);

}  // namespace ptrt
