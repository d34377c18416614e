#include "model_io/h5_file.h"

#include <fcntl.h>
#include <hdf5.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/error.h"

namespace ptrt {
namespace {

static_assert(std::is_same_v<hid_t, std::int64_t> && std::is_same_v<herr_t, int>);

// The library neither prints (its errors become our messages) nor closes things at exit: handles here close
// themselves, and after a file that could not be flushed, on a full disk, its own closing at exit crashes.
void prepare_library() {
  static const bool once = H5dont_atexit() >= 0 && H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  if (!once) throw_failure("cannot set up the HDF5 library");
}

// What the library says of its last error: the innermost entry of its stack, of which "error message = '...'"
// is the part that tells (an errno in words).
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

bool is_float(hid_t type, std::size_t bytes, std::size_t exponent_bits, std::size_t mantissa_bits) {
  if (H5Tget_class(type) != H5T_FLOAT || H5Tget_size(type) != bytes) return false;
  std::size_t sign = 0, exponent_at = 0, exponent = 0, mantissa_at = 0, mantissa = 0;
  H5Tget_fields(type, &sign, &exponent_at, &exponent, &mantissa_at, &mantissa);
  return sign == 8 * bytes - 1 && exponent == exponent_bits && mantissa == mantissa_bits &&
         mantissa_at == 0 && exponent_at == mantissa_bits &&
         H5Tget_ebias(type) == (std::size_t{1} << (exponent_bits - 1)) - 1;
}

H5Type classify(hid_t type) {
  if (is_float(type, 4, 8, 23)) return H5Type::float32;
  if (is_float(type, 2, 5, 10)) return H5Type::float16;
  if (H5Tget_class(type) != H5T_INTEGER) return H5Type::other;
  const bool is_unsigned = H5Tget_sign(type) == H5T_SGN_NONE;
  if (H5Tget_size(type) == 1) return is_unsigned ? H5Type::uint8 : H5Type::int8;
  return is_unsigned && H5Tget_size(type) == 2 ? H5Type::uint16 : H5Type::other;
}

std::string name_of_type(hid_t type) {
  const std::size_t bits = 8 * H5Tget_size(type);
  const char* order = bits > 8 && H5Tget_order(type) == H5T_ORDER_BE ? " (big-endian)" : "";
  switch (H5Tget_class(type)) {
    case H5T_FLOAT:
      return fmt::format("float{}{}", bits, order);
    case H5T_INTEGER:
      return fmt::format("{}int{}{}", H5Tget_sign(type) == H5T_SGN_NONE ? "u" : "", bits, order);
    case H5T_STRING:
      return "strings";
    case H5T_COMPOUND:
      return "a compound type";
    default:
      return "another type";
  }
}

// Whether every byte has its place in the file. A dataset that was created but never written has none.
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

H5DatasetInfo read_info(hid_t dataset, hid_t type, hid_t space) {
  H5DatasetInfo info;
  info.type = classify(type);
  info.big_endian = H5Tget_order(type) == H5T_ORDER_BE;
  info.type_name = name_of_type(type);
  std::vector<hsize_t> extents(static_cast<std::size_t>(std::max(H5Sget_simple_extent_ndims(space), 0)));
  H5Sget_simple_extent_dims(space, extents.data(), nullptr);
  info.shape.assign(extents.begin(), extents.end());
  const H5Handle properties(H5Dget_create_plist(dataset), H5Pclose);
  const haddr_t offset = H5Dget_offset(dataset);  // undefined where the bytes lie in a file of their own
  if (H5Pget_layout(properties.id()) == H5D_CONTIGUOUS && offset != HADDR_UNDEF) info.offset = offset;
  info.stored = is_stored(dataset, properties.id(), space, info.shape, H5Tget_size(type));
  return info;
}

hid_t file_type(H5Type type) {
  switch (type) {
    case H5Type::float32:
      return H5Tcopy(H5T_IEEE_F32LE);
    case H5Type::uint16:
      return H5Tcopy(H5T_STD_U16LE);
    case H5Type::uint8:
      return H5Tcopy(H5T_STD_U8LE);
    case H5Type::int8:
      return H5Tcopy(H5T_STD_I8LE);
    case H5Type::float16: {
      const hid_t half = H5Tcopy(H5T_IEEE_F32LE);  // the library has no half of its own
      H5Tset_fields(half, 15, 10, 5, 0, 10);
      H5Tset_size(half, 2);
      H5Tset_ebias(half, 15);
      return half;
    }
    case H5Type::other:
      break;
  }
  throw_failure("internal error: a dataset of no known element type");
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
      info_(read_info(handle_.id(), type_.id(), space_.id())) {}

// A run of elements is cut into boxes that the library can select: of each dimension but one it takes a
// single index or all of them. transfer(memory_space, file_space, byte offset in the run).
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

// Looks whether it is there only once it cannot be opened: a model has hundreds of datasets, and each link of
// a path takes as long to look up as the dataset to open.
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
