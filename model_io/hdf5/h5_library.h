// What the sources h5_*.cpp share. For them alone.
#pragma once

#include <hdf5.h>

#include <string>
#include <type_traits>

#include "model_io/hdf5/h5_file.h"

namespace ptrt {

static_assert(std::is_same_v<hid_t, std::int64_t> && std::is_same_v<herr_t, int>);

// The cause of the library's last error, in words.
std::string library_reason();

H5Handle property_list(hid_t list_class);

}  // namespace ptrt
