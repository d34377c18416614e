#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/base/error.h"
#include "model_io/hdf5/h5_library.h"
#include "model_io/hdf5/h5_types.h"

namespace ptrt {
namespace {

// Whether every byte has a place in the file. A dataset that was created but never written has
// none. `properties`: as checked_properties() gives them.
bool is_stored(hid_t dataset, hid_t properties, hid_t space, const std::vector<std::int64_t>& shape,
               std::size_t element_bytes) {
  std::size_t bytes = element_bytes;
  for (const std::int64_t extent : shape) bytes *= static_cast<std::size_t>(extent);
  const H5D_layout_t layout = properties < 0 ? H5D_CONTIGUOUS : H5Pget_layout(properties);
  if (layout == H5D_VIRTUAL) return true;
  if (layout != H5D_CHUNKED) return H5Dget_storage_size(dataset) >= bytes;
  std::vector<hsize_t> chunk(shape.size());
  H5Pget_chunk(properties, static_cast<int>(chunk.size()), chunk.data());
  hsize_t expected = 1, found = 0;
  for (std::size_t i = 0; i < shape.size(); ++i)
    expected *= (static_cast<hsize_t>(shape[i]) + chunk[i] - 1) / std::max<hsize_t>(chunk[i], 1);
  return H5Dget_num_chunks(dataset, space, &found) >= 0 && found == expected;
}

std::vector<std::string> other_files(hid_t properties) {
  const bool is_virtual = H5Pget_layout(properties) == H5D_VIRTUAL;
  std::size_t count = 0;
  if (is_virtual) {
    H5Pget_virtual_count(properties, &count);
  } else {
    count = static_cast<std::size_t>(std::max(H5Pget_external_count(properties), 0));
  }
  std::vector<std::string> names;
  for (std::size_t i = 0; i < count; ++i) {
    std::array<char, 4096> name{};
    if (is_virtual) {
      H5Pget_virtual_filename(properties, i, name.data(), name.size() - 1);
    } else {
      H5Pget_external(properties, static_cast<unsigned>(i), name.size() - 1, name.data(), nullptr, nullptr);
    }
    names.emplace_back(name.data());
  }
  return names;
}

// Of an open dataset: before anything else is asked, since the library opens the files that a virtual
// dataset names as soon as it is asked for its shape. None (-1) where it has a place in its own file and so lies
// there contiguously: the library takes longer to copy its properties than to open it.
hid_t checked_properties(hid_t dataset, const std::string& file, const std::string& path,
                         bool may_lie_elsewhere) {
  if (H5Dget_offset(dataset) != HADDR_UNDEF) return -1;
  H5Handle properties(H5Dget_create_plist(dataset), H5Pclose);
  if (!properties.valid())
    throw_bad_input("{}: cannot read the properties of dataset {}: {}", file, path, library_reason());
  const bool is_virtual = H5Pget_layout(properties.id()) == H5D_VIRTUAL;
  if (!may_lie_elsewhere && (is_virtual || H5Pget_external_count(properties.id()) != 0))
    throw_bad_input("{}: dataset {} has its data in other files ({}: {}), which --trust-links permits", file,
                    path, is_virtual ? "it is virtual" : "external storage",
                    fmt::join(other_files(properties.id()), ", "));
  return properties.release();
}

H5DatasetInfo read_info(hid_t dataset, hid_t properties, hid_t type, hid_t space) {
  H5DatasetInfo info;
  info.type = classify(type);
  info.big_endian = H5Tget_order(type) == H5T_ORDER_BE;
  std::vector<hsize_t> extents(static_cast<std::size_t>(std::max(H5Sget_simple_extent_ndims(space), 0)));
  H5Sget_simple_extent_dims(space, extents.data(), nullptr);
  info.shape.assign(extents.begin(), extents.end());
  if (properties >= 0) info.other_files = other_files(properties);
  if (properties < 0) info.offset = H5Dget_offset(dataset);
  info.stored = is_stored(dataset, properties, space, info.shape, H5Tget_size(type));
  H5O_info_t object;
  if (H5Oget_info2(dataset, &object, H5O_INFO_BASIC) >= 0) {
    info.header = object.addr;
    info.links = object.rc;
  }
  return info;
}

}  // namespace

H5Dataset::H5Dataset(H5Handle handle, std::string file, std::string path, bool may_lie_elsewhere)
    : H5Object(std::move(handle), std::move(file), std::move(path)),
      properties_(checked_properties(handle_.id(), file_, path_, may_lie_elsewhere), H5Pclose),
      type_(H5Dget_type(handle_.id()), H5Tclose),
      space_(H5Dget_space(handle_.id()), H5Sclose),
      element_bytes_(H5Tget_size(type_.id())),
      info_(read_info(handle_.id(), properties_.id(), type_.id(), space_.id())) {}

std::string H5Dataset::type_name() const {
  return name_of_type(type_.id());
}

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

}  // namespace ptrt
