#include "model_io/file/h5_file.h"

#include <fcntl.h>
#include <hdf5.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/base/error.h"
#include "model_io/file/h5_types.h"

namespace ptrt {
namespace {

static_assert(std::is_same_v<hid_t, std::int64_t> && std::is_same_v<herr_t, int>);

// The library neither prints errors (they become our messages) nor closes objects at exit: handles
// close themselves, and where a file could not be flushed (a full disk), the library's closing at
// exit crashes.
void prepare_library() {
  static const bool once = H5dont_atexit() >= 0 && H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  if (!once) throw_failure("cannot set up the HDF5 library");
}

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

// Whether every byte has a place in the file. A dataset that was created but never written has
// none.
bool is_stored(hid_t dataset, hid_t properties, hid_t space, const std::vector<std::int64_t>& shape,
               std::size_t element_bytes) {
  std::size_t bytes = element_bytes;
  for (const std::int64_t extent : shape) bytes *= static_cast<std::size_t>(extent);
  if (H5Pget_layout(properties) != H5D_CHUNKED) return H5Dget_storage_size(dataset) >= bytes;
  std::vector<hsize_t> chunk(shape.size());
  H5Pget_chunk(properties, static_cast<int>(chunk.size()), chunk.data());
  hsize_t expected = 1, found = 0;
  for (std::size_t i = 0; i < shape.size(); ++i)
    expected *= (static_cast<hsize_t>(shape[i]) + chunk[i] - 1) / chunk[i];
  return H5Dget_num_chunks(dataset, space, &found) >= 0 && found == expected;
}

// The name of the file that holds an object, which a link may have led to.
std::string file_of(hid_t object) {
  std::string name(static_cast<std::size_t>(std::max<ssize_t>(0, H5Fget_name(object, nullptr, 0))), '\0');
  H5Fget_name(object, name.data(), name.size() + 1);
  return name;
}

H5DatasetInfo read_info(hid_t dataset, hid_t type, hid_t space, const std::string& file) {
  H5DatasetInfo info;
  info.type = classify(type);
  info.big_endian = H5Tget_order(type) == H5T_ORDER_BE;
  info.type_name = name_of_type(type);
  std::vector<hsize_t> extents(static_cast<std::size_t>(std::max(H5Sget_simple_extent_ndims(space), 0)));
  H5Sget_simple_extent_dims(space, extents.data(), nullptr);
  info.shape.assign(extents.begin(), extents.end());
  const H5Handle properties(H5Dget_create_plist(dataset), H5Pclose);
  const haddr_t offset = H5Dget_offset(dataset);  // undefined where the bytes lie in a file of their own
  if (H5Pget_layout(properties.id()) == H5D_CONTIGUOUS && offset != HADDR_UNDEF && file_of(dataset) == file)
    info.offset = offset;
  info.stored = is_stored(dataset, properties.id(), space, info.shape, H5Tget_size(type));
  return info;
}

std::optional<std::string> read_string(hid_t attribute, hid_t type, hid_t space) {
  if (H5Tis_variable_str(type) > 0) {
    char* text = nullptr;
    if (H5Aread(attribute, type, static_cast<void*>(&text)) < 0) return std::nullopt;
    std::string result = text == nullptr ? "" : text;
    H5Dvlen_reclaim(type, space, H5P_DEFAULT, static_cast<void*>(&text));
    return result;
  }
  std::string result(H5Tget_size(type), '\0');
  if (H5Aread(attribute, type, result.data()) < 0) return std::nullopt;
  const auto padding = H5Tget_strpad(type);
  if (padding == H5T_STR_NULLTERM) return std::string(result.c_str());
  const auto last = result.find_last_not_of(padding == H5T_STR_SPACEPAD ? ' ' : '\0');
  return result.substr(0, last == std::string::npos ? 0 : last + 1);
}

}  // namespace

bool H5Handle::reset() {
  const std::int64_t id = std::exchange(id_, -1);
  return id < 0 || close_(id) >= 0;
}

// ---- objects and attributes

H5Object::H5Object(H5Handle handle, std::string file, std::string path)
    : handle_(std::move(handle)), file_(std::move(file)), path_(std::move(path)) {}

std::optional<std::string> H5Object::string_attribute(const std::string& name) const {
  if (H5Aexists(handle_.id(), name.c_str()) <= 0) return std::nullopt;
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
  if (H5Aexists(handle_.id(), name.c_str()) <= 0) return std::nullopt;
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
  H5Tset_size(type.id(), H5T_VARIABLE);
  H5Tset_cset(type.id(), H5T_CSET_UTF8);
  const char* text = value.c_str();
  write_scalar(handle_.id(), file_, path_, name, type.id(), type.id(), static_cast<const void*>(&text));
}

void H5Object::write_attribute(const std::string& name, std::int64_t value) {
  write_scalar(handle_.id(), file_, path_, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void H5Object::write_attribute(const std::string& name, std::uint32_t value) {
  write_scalar(handle_.id(), file_, path_, name, H5T_STD_U32LE, H5T_NATIVE_UINT32, &value);
}

// ---- datasets

H5Dataset::H5Dataset(H5Handle handle, std::string file, std::string path)
    : H5Object(std::move(handle), std::move(file), std::move(path)),
      type_(H5Dget_type(handle_.id()), H5Tclose),
      space_(H5Dget_space(handle_.id()), H5Sclose),
      element_bytes_(H5Tget_size(type_.id())),
      info_(read_info(handle_.id(), type_.id(), space_.id(), file_)) {}

// A run of elements is cut into boxes that the library can select: of each dimension but one it
// takes a single index or all of them. transfer(memory_space, file_space, byte offset in the run).
template <typename Transfer>
void H5Dataset::for_each_box(std::int64_t first, std::size_t bytes, const Transfer& transfer) const {
  const std::size_t rank = info_.shape.size();
  std::vector<std::int64_t> inner(rank, 1);  // elements below one index of each dimension
  for (std::size_t k = rank; k-- > 1;) inner[k - 1] = inner[k] * info_.shape[k];
  std::vector<hsize_t> start(rank), count(rank);
  const auto elements = static_cast<std::int64_t>(bytes / element_bytes_);
  PTRT_CHECK(rank > 0 && bytes % element_bytes_ == 0 && first + elements <= inner[0] * info_.shape[0]);
  for (std::int64_t done = 0; done < elements;) {
    const std::int64_t at = first + done, left = elements - done;
    std::size_t k = 0;  // the outermost dimension of which whole indices fit
    while (at % inner[k] != 0 || left < inner[k]) ++k;
    for (std::size_t i = 0; i < rank; ++i) {
      start[i] = static_cast<hsize_t>(at / inner[i] % info_.shape[i]);
      count[i] = i > k ? static_cast<hsize_t>(info_.shape[i]) : 1;
    }
    const std::int64_t indices =
        std::min(left / inner[k], info_.shape[k] - static_cast<std::int64_t>(start[k]));
    count[k] = static_cast<hsize_t>(indices);
    const auto size = static_cast<hsize_t>(indices * inner[k]);
    const H5Handle memory(H5Screate_simple(1, &size, nullptr), H5Sclose);
    H5Sselect_hyperslab(space_.id(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr);
    transfer(memory.id(), space_.id(), static_cast<std::size_t>(done) * element_bytes_);
    done += indices * inner[k];
  }
}

void H5Dataset::read(std::int64_t first, std::span<std::byte> bytes) const {
  for_each_box(first, bytes.size(), [&](hid_t memory, hid_t file, std::size_t offset) {
    if (H5Dread(handle_.id(), type_.id(), memory, file, H5P_DEFAULT, bytes.data() + offset) < 0)
      throw_bad_input("{}: cannot read dataset {}: {}", file_, path_, library_reason());
  });
}

void H5Dataset::write(std::int64_t first, std::span<const std::byte> bytes) {
  for_each_box(first, bytes.size(), [&](hid_t memory, hid_t file, std::size_t offset) {
    if (H5Dwrite(handle_.id(), type_.id(), memory, file, H5P_DEFAULT, bytes.data() + offset) < 0)
      throw_failure("{}: cannot write dataset {}: {}", file_, path_, library_reason());
  });
}

// ---- files

namespace {

// The library's own words for these cases do not help.
void check_readable(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) throw_bad_input("{}: cannot open: {}", path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) throw_bad_input("{}: not a regular file", path);
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw_bad_input("{}: cannot open: {}", path, std::strerror(errno));
  ::close(descriptor);
}

}  // namespace

H5File::H5File(H5Handle handle, std::string path) : handle_(std::move(handle)), path_(std::move(path)) {}

H5File H5File::open(const std::string& path) {
  prepare_library();
  check_readable(path);
  if (H5Fis_hdf5(path.c_str()) <= 0) throw_bad_input("{}: not an HDF5 file", path);
  const H5Handle access = property_list(H5P_FILE_ACCESS);
  H5Pset_fapl_sec2(access.id());                  // plain reads, so that descriptor() is one
  H5Pset_file_locking(access.id(), false, true);  // some parallel file systems refuse locks
  H5Handle handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.id()), H5Fclose);
  if (!handle.valid()) throw_bad_input("{}: truncated or damaged HDF5 file: {}", path, library_reason());
  return {std::move(handle), path};
}

H5File H5File::create(const std::string& path, std::size_t alignment) {
  prepare_library();
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor < 0) throw_bad_input("{}: cannot create: {}", path, std::strerror(errno));
  ::close(descriptor);
  const H5Handle access = property_list(H5P_FILE_ACCESS);
  H5Pset_file_locking(access.id(), false, true);
  H5Pset_alignment(access.id(), alignment, alignment);
  H5Handle handle(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.id()), H5Fclose);
  if (handle.valid()) return {std::move(handle), path};
  const std::string reason = library_reason();
  ::unlink(path.c_str());
  throw_failure("{}: cannot create: {}", path, reason);
}

int H5File::descriptor() const {
  void* descriptor = nullptr;
  if (H5Fget_vfd_handle(handle_.id(), H5P_DEFAULT, &descriptor) < 0)
    throw_failure("{}: no file descriptor: {}", path_, library_reason());
  return *static_cast<int*>(descriptor);
}

bool H5File::exists(const std::string& object) const {
  for (std::size_t end = object.find('/', 1);; end = object.find('/', end + 1)) {
    if (H5Lexists(handle_.id(), object.substr(0, end).c_str(), H5P_DEFAULT) <= 0) return false;
    if (end == std::string::npos) break;
  }
  return H5Oexists_by_name(handle_.id(), object.c_str(), H5P_DEFAULT) > 0;
}

std::optional<H5ExternalLink> H5File::external_link(const std::string& path) const {
  H5L_info_t link;
  if (H5Lget_info(handle_.id(), path.c_str(), &link, H5P_DEFAULT) < 0 || link.type != H5L_TYPE_EXTERNAL)
    return std::nullopt;
  std::vector<char> value(link.u.val_size);
  unsigned flags = 0;
  const char *file = nullptr, *object = nullptr;
  if (H5Lget_val(handle_.id(), path.c_str(), value.data(), value.size(), H5P_DEFAULT) < 0 ||
      H5Lunpack_elink_val(value.data(), value.size(), &flags, &file, &object) < 0)
    throw_bad_input("{}: cannot read the external link {}: {}", path_, path, library_reason());
  return H5ExternalLink{file, object};
}

H5Object H5File::group(const std::string& path) const {
  H5Handle handle(H5Gopen2(handle_.id(), path.c_str(), H5P_DEFAULT), H5Gclose);
  if (!handle.valid()) throw_bad_input("{}: cannot open group {}: {}", path_, path, library_reason());
  return {std::move(handle), path_, path};
}

// Checks whether it exists only after it could not be opened: a model has hundreds of datasets, and
// looking up each link of a path takes as long as opening the dataset.
std::optional<H5Dataset> H5File::find_dataset(const std::string& path, const std::string& name) const {
  const std::string& shown = name.empty() ? path : name;
  H5Handle handle(H5Dopen2(handle_.id(), path.c_str(), H5P_DEFAULT), H5Dclose);
  if (handle.valid()) return H5Dataset(std::move(handle), path_, shown);
  const std::string reason = library_reason();
  if (!exists(path)) return std::nullopt;
  throw_bad_input("{}: {} cannot be opened as a dataset: {}", path_, shown, reason);
}

H5Dataset H5File::dataset(const std::string& path, const std::string& name) const {
  auto found = find_dataset(path, name);
  if (!found) throw_bad_input("{}: dataset {} is missing", path_, name.empty() ? path : name);
  return *std::move(found);
}

H5Object H5File::create_group(const std::string& path) {
  const H5Handle links = property_list(H5P_LINK_CREATE);
  H5Pset_create_intermediate_group(links.id(), 1);
  H5Handle handle(H5Gcreate2(handle_.id(), path.c_str(), links.id(), H5P_DEFAULT, H5P_DEFAULT), H5Gclose);
  if (!handle.valid()) throw_failure("{}: cannot create group {}: {}", path_, path, library_reason());
  return {std::move(handle), path_, path};
}

H5Dataset H5File::create_dataset(const std::string& path, H5Type type,
                                 const std::vector<std::int64_t>& shape) {
  const H5Handle links = property_list(H5P_LINK_CREATE), properties = property_list(H5P_DATASET_CREATE);
  H5Pset_create_intermediate_group(links.id(), 1);
  H5Pset_fill_time(properties.id(), H5D_FILL_TIME_NEVER);  // every element is written
  H5Pset_obj_track_times(properties.id(), false);          // equal content makes equal files
  const std::vector<hsize_t> extents(shape.begin(), shape.end());
  const H5Handle space(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr), H5Sclose);
  const H5Handle element(file_type(type), H5Tclose);
  H5Handle handle(H5Dcreate2(handle_.id(), path.c_str(), element.id(), space.id(), links.id(),
                             properties.id(), H5P_DEFAULT),
                  H5Dclose);
  if (!handle.valid()) throw_failure("{}: cannot create dataset {}: {}", path_, path, library_reason());
  return {std::move(handle), path_, path};
}

void H5File::create_external_link(const std::string& path, const H5ExternalLink& target) {
  const H5Handle links = property_list(H5P_LINK_CREATE);
  H5Pset_create_intermediate_group(links.id(), 1);
  if (H5Lcreate_external(target.file.c_str(), target.path.c_str(), handle_.id(), path.c_str(), links.id(),
                         H5P_DEFAULT) < 0)
    throw_failure("{}: cannot create the external link {}: {}", path_, path, library_reason());
}

void H5File::close() {
  if (!handle_.reset()) throw_failure("{}: cannot write: {}", path_, library_reason());
}

}  // namespace ptrt
