#include "model_io/hdf5/h5_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/base/error.h"
#include "model_io/hdf5/h5_library.h"
#include "model_io/hdf5/h5_types.h"

namespace ptrt {
namespace {

constexpr unsigned kLinksInHeader = 32;

// The library neither prints errors (they become our messages) nor closes objects at exit: handles
// close themselves, and where a file could not be flushed (a full disk), the library's closing at
// exit crashes.
void prepare_library() {
  static const bool once = H5dont_atexit() >= 0 && H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  if (!once) throw_failure("cannot set up the HDF5 library");
}

// Equal content makes equal files, so no times. The links of a layer's group lie in its header, not in
// a heap and a tree of their own.
void set_group_properties(hid_t group_create) {
  H5Pset_obj_track_times(group_create, false);
  H5Pset_link_phase_change(group_create, kLinksInHeader, kLinksInHeader);
}

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
  const H5Handle access = property_list(H5P_FILE_ACCESS), root = property_list(H5P_FILE_CREATE);
  H5Pset_file_locking(access.id(), false, true);
  H5Pset_alignment(access.id(), alignment, alignment);
  H5Pset_libver_bounds(access.id(), H5F_LIBVER_V18, H5F_LIBVER_V18);
  set_group_properties(root.id());
  H5Handle handle(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, root.id(), access.id()), H5Fclose);
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

std::uint64_t H5File::end() const {
  haddr_t end = 0;
  return H5Fget_eoa(handle_.id(), &end) < 0 ? 0 : end;
}

H5Group H5File::root() const {
  H5Handle handle(H5Gopen2(handle_.id(), "/", H5P_DEFAULT), H5Gclose);
  if (!handle.valid()) throw_bad_input("{}: cannot open its root group: {}", path_, library_reason());
  return {std::move(handle), path_, "/"};
}

bool H5File::is_hdf5(const std::string& path) {
  prepare_library();
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) && H5Fis_hdf5(path.c_str()) > 0;
}

// The library's own creation of the groups on a path would record times in them.
void H5File::create_parents(const std::string& path) {
  for (std::size_t end = path.find('/', 1); end != std::string::npos; end = path.find('/', end + 1))
    if (const std::string group = path.substr(0, end); !created_.contains(group)) create_group(group);
}

H5Object H5File::create_group(const std::string& path) {
  create_parents(path);
  const H5Handle properties = property_list(H5P_GROUP_CREATE);
  set_group_properties(properties.id());
  H5Handle handle(H5Gcreate2(handle_.id(), path.c_str(), H5P_DEFAULT, properties.id(), H5P_DEFAULT),
                  H5Gclose);
  if (!handle.valid()) throw_failure("{}: cannot create group {}: {}", path_, path, library_reason());
  created_.insert(path);
  return {std::move(handle), path_, path};
}

H5Dataset H5File::create_dataset(const std::string& path, H5Type type,
                                 const std::vector<std::int64_t>& shape) {
  create_parents(path);
  const H5Handle properties = property_list(H5P_DATASET_CREATE);
  H5Pset_fill_time(properties.id(), H5D_FILL_TIME_NEVER);  // every element is written
  H5Pset_obj_track_times(properties.id(), false);          // equal content makes equal files
  const std::vector<hsize_t> extents(shape.begin(), shape.end());
  const H5Handle space(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr), H5Sclose);
  const H5Handle element(file_type(type), H5Tclose);
  H5Handle handle(H5Dcreate2(handle_.id(), path.c_str(), element.id(), space.id(), H5P_DEFAULT,
                             properties.id(), H5P_DEFAULT),
                  H5Dclose);
  if (!handle.valid()) throw_failure("{}: cannot create dataset {}: {}", path_, path, library_reason());
  return {std::move(handle), path_, path};
}

void H5File::create_external_link(const std::string& path, const std::string& file,
                                  const std::string& target) {
  create_parents(path);
  if (H5Lcreate_external(file.c_str(), target.c_str(), handle_.id(), path.c_str(), H5P_DEFAULT, H5P_DEFAULT) <
      0)
    throw_failure("{}: cannot create the external link {}: {}", path_, path, library_reason());
}

void H5File::close() {
  if (!handle_.reset()) throw_failure("{}: cannot write: {}", path_, library_reason());
}

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  prepare_library();
  H5get_libversion(&major, &minor, &release);
  return fmt::format("{}.{}.{}", major, minor, release);
}

}  // namespace ptrt
