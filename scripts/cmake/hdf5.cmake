# HDF5, linked statically where its archive lies beside the shared library: that one brings some thirty others along
# (Debian's, for files on web servers), which every start would have to link.
option(PTRT_STATIC_HDF5 "Link HDF5's archive where there is one" ON)
find_package(HDF5 REQUIRED COMPONENTS C)

if(PTRT_STATIC_HDF5)
  get_target_property(ptrt_hdf5_libraries HDF5::HDF5 INTERFACE_LINK_LIBRARIES)
  set(ptrt_hdf5_links)
  foreach(library IN LISTS ptrt_hdf5_libraries)
    string(REGEX REPLACE "\\.so[.0-9]*$" ".a" archive "${library}")
    if(library MATCHES "/libhdf5[^/]*\\.so[.0-9]*$" AND EXISTS "${archive}")
      set(library "${archive}")
    endif()
    list(APPEND ptrt_hdf5_links "${library}")
  endforeach()
  set_property(TARGET HDF5::HDF5 PROPERTY INTERFACE_LINK_LIBRARIES ${ptrt_hdf5_links})
endif()
