// A property list of the HDF5 library that every writer of mutants uses.
#pragma once

#include <hdf5.h>

namespace ptrt {

// For the creation of links: groups on the way are created too. Never closed.
inline hid_t with_parents() {
  static const hid_t list = [] {
    const hid_t id = H5Pcreate(H5P_LINK_CREATE);
    H5Pset_create_intermediate_group(id, 1);
    return id;
  }();
  return list;
}

}  // namespace ptrt
