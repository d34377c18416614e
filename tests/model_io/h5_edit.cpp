#include "h5_edit.h"

#include <hdf5.h>

#include <fstream>
#include <stdexcept>

namespace ptrt {
namespace {

hid_t checked(hid_t id) {
  if (id < 0) throw std::runtime_error("HDF5 call failed in a test");
  return id;
}

hid_t open_file(const std::string& file) {
  return checked(H5Fopen(file.c_str(), H5F_ACC_RDWR, H5P_DEFAULT));
}

hid_t half_type() {
  const hid_t half = H5Tcopy(H5T_IEEE_F32LE);
  H5Tset_fields(half, 15, 10, 5, 0, 10);
  H5Tset_size(half, 2);
  H5Tset_ebias(half, 15);
  return half;
}

hid_t type_of(ForeignType type) {
  static const hid_t half = half_type();
  switch (type) {
    case ForeignType::float16:
      return half;
    case ForeignType::int8:
      return H5T_STD_I8LE;
    case ForeignType::float32_big_endian:
      return H5T_IEEE_F32BE;
    case ForeignType::float32:
      return H5T_IEEE_F32LE;
    case ForeignType::float64:
      return H5T_IEEE_F64LE;
    case ForeignType::int32:
      return H5T_STD_I32LE;
    case ForeignType::uint16:
      return H5T_STD_U16LE;
    case ForeignType::uint8:
      return H5T_STD_U8LE;
  }
  return -1;
}

void put_attribute(const std::string& file, const std::string& object, const std::string& name, hid_t type,
                   hid_t memory_type, const void* value) {
  const hid_t id = open_file(file), holder = checked(H5Oopen(id, object.c_str(), H5P_DEFAULT));
  if (H5Aexists(holder, name.c_str()) > 0) H5Adelete(holder, name.c_str());
  const hid_t space = H5Screate(H5S_SCALAR);
  const hid_t attribute = checked(H5Acreate2(holder, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT));
  checked(H5Awrite(attribute, memory_type, value));
  H5Aclose(attribute), H5Sclose(space), H5Oclose(holder), H5Fclose(id);
}

}  // namespace

void remove_object(const std::string& file, const std::string& path) {
  const hid_t id = open_file(file);
  checked(H5Ldelete(id, path.c_str(), H5P_DEFAULT));
  H5Fclose(id);
}

void remove_attribute(const std::string& file, const std::string& object, const std::string& name) {
  const hid_t id = open_file(file);
  checked(H5Adelete_by_name(id, object.c_str(), name.c_str(), H5P_DEFAULT));
  H5Fclose(id);
}

void set_integer(const std::string& file, const std::string& object, const std::string& name,
                 std::int64_t value) {
  put_attribute(file, object, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void set_fixed_string(const std::string& file, const std::string& object, const std::string& name,
                      const std::string& value, char padding) {
  const hid_t type = H5Tcopy(H5T_C_S1);
  const std::string padded = value + std::string(5, padding);
  H5Tset_size(type, padded.size());
  H5Tset_strpad(type, padding == ' ' ? H5T_STR_SPACEPAD : H5T_STR_NULLPAD);
  put_attribute(file, object, name, type, type, padded.data());
  H5Tclose(type);
}

void replace_dataset(const std::string& file, const std::string& path, ForeignType type,
                     const std::vector<std::int64_t>& shape, const std::vector<double>& values,
                     ForeignLayout layout) {
  const hid_t id = open_file(file);
  if (H5Lexists(id, path.c_str(), H5P_DEFAULT) > 0) checked(H5Ldelete(id, path.c_str(), H5P_DEFAULT));
  const std::vector<hsize_t> extents(shape.begin(), shape.end());
  const hid_t space = extents.empty()
                          ? H5Screate(H5S_SCALAR)
                          : H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr);
  const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  std::vector<hsize_t> chunk = extents;
  const bool chunked = layout == ForeignLayout::compressed_chunks || layout == ForeignLayout::half_written;
  if (chunked) {
    chunk[0] = (chunk[0] + 1) / 2;
    H5Pset_chunk(properties, static_cast<int>(chunk.size()), chunk.data());
    if (layout == ForeignLayout::compressed_chunks) H5Pset_deflate(properties, 6);
  }
  const hid_t dataset =
      checked(H5Dcreate2(id, path.c_str(), type_of(type), space, H5P_DEFAULT, properties, H5P_DEFAULT));
  if (layout == ForeignLayout::half_written) {
    const std::vector<hsize_t> start(extents.size(), 0);
    H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, chunk.data(), nullptr);
  }
  if (layout != ForeignLayout::never_written)
    checked(
        H5Dwrite(dataset, H5T_NATIVE_DOUBLE, chunked ? space : H5S_ALL, space, H5P_DEFAULT, values.data()));
  H5Dclose(dataset), H5Pclose(properties), H5Sclose(space), H5Fclose(id);
}

void replace_by_group(const std::string& file, const std::string& path) {
  const hid_t id = open_file(file);
  checked(H5Ldelete(id, path.c_str(), H5P_DEFAULT));
  H5Gclose(checked(H5Gcreate2(id, path.c_str(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)));
  H5Fclose(id);
}

void flip_bit(const std::string& file, const std::string& path, std::size_t byte) {
  const hid_t id = open_file(file), dataset = checked(H5Dopen2(id, path.c_str(), H5P_DEFAULT));
  const auto offset = static_cast<std::streamoff>(H5Dget_offset(dataset) + byte);
  H5Dclose(dataset), H5Fclose(id);
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(offset);
  const int old = stream.get();
  stream.seekp(offset);
  stream.put(static_cast<char>(old ^ 1));
}

}  // namespace ptrt
