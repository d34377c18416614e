// Element types of datasets: ours, and the HDF5 library's. For h5_file.cpp alone.
#pragma once

#include <cstdint>
#include <string>

#include "model_io/hdf5/h5_file.h"

namespace ptrt {

// `type` is an identifier of the library's (hid_t).
H5Type classify(std::int64_t type);
std::string name_of_type(std::int64_t type);  // for messages

// A new identifier, little-endian. Not of H5Type::other.
std::int64_t file_type(H5Type type);

}  // namespace ptrt
