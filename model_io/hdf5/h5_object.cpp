#include <algorithm>
#include <utility>

#include "kernels/base/error.h"
#include "model_io/hdf5/h5_library.h"
#include "model_io/hdf5/h5_types.h"

namespace ptrt {
namespace {

constexpr std::size_t kLongestString = std::size_t{64} << 20;

std::optional<std::string> read_string(hid_t attribute, hid_t type, hid_t space) {
  if (H5Tis_variable_str(type) > 0) {
    char* text = nullptr;
    if (H5Aread(attribute, type, static_cast<void*>(&text)) < 0) return std::nullopt;
    std::string result = text == nullptr ? "" : text;
    H5Dvlen_reclaim(type, space, H5P_DEFAULT, static_cast<void*>(&text));
    return result;
  }
  const std::size_t bytes = H5Tget_size(type);
  if (bytes > kLongestString) return std::nullopt;
  std::string result(bytes, '\0');
  if (H5Aread(attribute, type, result.data()) < 0) return std::nullopt;
  const auto padding = H5Tget_strpad(type);
  if (padding == H5T_STR_NULLTERM) return result.substr(0, result.find('\0'));
  const auto last = result.find_last_not_of(padding == H5T_STR_SPACEPAD ? ' ' : '\0');
  return result.substr(0, last == std::string::npos ? 0 : last + 1);
}

}  // namespace

// The library's last error: the innermost entry of its stack, whose part "error message = '...'"
// has the cause (an errno in words).
std::string library_reason() {
  std::string reason;
  const auto take_first = [](unsigned, const H5E_error2_t* entry, void* text) -> herr_t {
    auto& result = *static_cast<std::string*>(text);
    if (result.empty() && entry->desc != nullptr) result = entry->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &reason);
  constexpr std::string_view kMarker = "error message = '";
  if (const auto start = reason.find(kMarker); start != std::string::npos) {
    const auto from = start + kMarker.size();
    return reason.substr(from, reason.find('\'', from) - from);
  }
  return reason.empty() ? "no reason given by the HDF5 library" : reason;
}

H5Handle property_list(hid_t list_class) {
  return {H5Pcreate(list_class), H5Pclose};
}

std::int64_t H5Handle::release() {
  return std::exchange(id_, -1);
}

bool H5Handle::reset() {
  const std::int64_t id = release();
  return id < 0 || close_(id) >= 0;
}

H5Object::H5Object(H5Handle handle, std::string file, std::string path)
    : handle_(std::move(handle)), file_(std::move(file)), path_(std::move(path)) {}

// An attribute that cannot be looked for is not one that is not there: it may be a checksum.
bool H5Object::has_attribute(const std::string& name) const {
  const htri_t there = H5Aexists(handle_.id(), name.c_str());
  if (there < 0) throw_bad_input("{}: cannot read the attributes of {}: {}", file_, path_, library_reason());
  return there > 0;
}

std::optional<std::string> H5Object::string_attribute(const std::string& name) const {
  if (!has_attribute(name)) return std::nullopt;
  const H5Handle attribute(H5Aopen(handle_.id(), name.c_str(), H5P_DEFAULT), H5Aclose);
  const H5Handle type(H5Aget_type(attribute.id()), H5Tclose), space(H5Aget_space(attribute.id()), H5Sclose);
  if (H5Tget_class(type.id()) != H5T_STRING || H5Sget_simple_extent_npoints(space.id()) != 1)
    throw_bad_input("{}: attribute \"{}\" of {}: expected a string, found {}", file_, name, path_,
                    name_of_type(type.id()));
  auto value = read_string(attribute.id(), type.id(), space.id());
  if (!value)
    throw_bad_input("{}: cannot read attribute \"{}\" of {}: {}", file_, name, path_, library_reason());
  return value;
}

std::optional<std::int64_t> H5Object::integer_attribute(const std::string& name) const {
  if (!has_attribute(name)) return std::nullopt;
  const H5Handle attribute(H5Aopen(handle_.id(), name.c_str(), H5P_DEFAULT), H5Aclose);
  const H5Handle type(H5Aget_type(attribute.id()), H5Tclose), space(H5Aget_space(attribute.id()), H5Sclose);
  std::int64_t value = 0;
  if (H5Tget_class(type.id()) != H5T_INTEGER || H5Sget_simple_extent_npoints(space.id()) != 1 ||
      H5Aread(attribute.id(), H5T_NATIVE_INT64, &value) < 0)
    throw_bad_input("{}: attribute \"{}\" of {}: expected an integer, found {}", file_, name, path_,
                    name_of_type(type.id()));
  return value;
}

namespace {

void write_scalar(hid_t object, const std::string& file, const std::string& path, const std::string& name,
                  hid_t type, hid_t memory_type, const void* value) {
  const H5Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const H5Handle attribute(H5Acreate2(object, name.c_str(), type, space.id(), H5P_DEFAULT, H5P_DEFAULT),
                           H5Aclose);
  if (!attribute.valid() || H5Awrite(attribute.id(), memory_type, value) < 0)
    throw_failure("{}: cannot write attribute \"{}\" of {}: {}", file, name, path, library_reason());
}

}  // namespace

void H5Object::write_attribute(const std::string& name, const std::string& value) {
  const H5Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type.id(), value.size() + 1);
  H5Tset_cset(type.id(), H5T_CSET_UTF8);
  write_scalar(handle_.id(), file_, path_, name, type.id(), type.id(), value.c_str());
}

void H5Object::write_attribute(const std::string& name, std::int64_t value) {
  write_scalar(handle_.id(), file_, path_, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void H5Object::write_attribute(const std::string& name, std::uint32_t value) {
  write_scalar(handle_.id(), file_, path_, name, H5T_STD_U32LE, H5T_NATIVE_UINT32, &value);
}

}  // namespace ptrt
