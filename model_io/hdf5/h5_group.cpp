#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "model_io/hdf5/h5_library.h"

namespace ptrt {

H5Link H5Group::link(const std::string& name) const {
  H5L_info_t info;
  const htri_t there = H5Lexists(handle_.id(), name.c_str(), H5P_DEFAULT);
  if (there == 0) return {};
  if (there < 0 || H5Lget_info(handle_.id(), name.c_str(), &info, H5P_DEFAULT) < 0)
    throw_bad_input("{}: cannot read the link {} of {}: {}", file_, name, path_, library_reason());
  if (info.type == H5L_TYPE_HARD) return {H5Link::Kind::hard, "", ""};
  if (info.type != H5L_TYPE_SOFT && info.type != H5L_TYPE_EXTERNAL) return {H5Link::Kind::other, "", ""};
  std::vector<char> value(info.u.val_size + 1, '\0');
  unsigned flags = 0;
  const char *file = "", *object = value.data();
  const bool external = info.type == H5L_TYPE_EXTERNAL;
  if (H5Lget_val(handle_.id(), name.c_str(), value.data(), info.u.val_size, H5P_DEFAULT) < 0 ||
      (external && H5Lunpack_elink_val(value.data(), info.u.val_size, &flags, &file, &object) < 0))
    throw_bad_input("{}: cannot read the link {} of {}: {}", file_, name, path_, library_reason());
  return {external ? H5Link::Kind::external : H5Link::Kind::soft, file, object};
}

H5Group H5Group::group(const std::string& name) const {
  const std::string path = path_ == "/" ? "/" + name : path_ + "/" + name;
  H5Handle handle(H5Gopen2(handle_.id(), name.c_str(), H5P_DEFAULT), H5Gclose);
  if (!handle.valid())
    throw_bad_input("{}: {} cannot be opened as a group: {}", file_, path, library_reason());
  return {std::move(handle), file_, path};
}

H5Dataset H5Group::dataset(const std::string& name, const std::string& shown, bool may_lie_elsewhere) const {
  H5Handle handle(H5Dopen2(handle_.id(), name.c_str(), H5P_DEFAULT), H5Dclose);
  if (!handle.valid())
    throw_bad_input("{}: {} cannot be opened as a dataset: {}", file_, shown, library_reason());
  return {std::move(handle), file_, shown, may_lie_elsewhere};
}

}  // namespace ptrt
