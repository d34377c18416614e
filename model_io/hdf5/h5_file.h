// HDF5 files and objects in handles that close themselves. The sources h5_*.cpp are the only ones that
// know the HDF5 library. It follows no link to another file by itself: linked_files.h does.
//
// Every message names the file and the object. An error in a file that is read is bad input; an
// error while one is written is a failure. One thread at a time uses the library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

namespace ptrt {

// Element types that the model format knows.
enum class H5Type : std::uint8_t { float32, float16, uint16, uint8, int8, other };

struct H5DatasetInfo {
  H5Type type = H5Type::other;
  bool big_endian = false;
  std::vector<std::int64_t> shape;  // empty for a scalar
  // Of its first byte, if the opened file has its bytes in one run, in C order and unchanged.
  std::optional<std::uint64_t> offset;
  bool stored = false;                   // all of it was written; otherwise the library would read zeros
  std::vector<std::string> other_files;  // that hold its data, as it names them
  std::uint64_t header = 0;              // where its header lies in its file
  unsigned links = 1;                    // that lead to it, as its header counts them
};

struct H5Link {
  enum class Kind : std::uint8_t { none, hard, soft, external, other };
  Kind kind = Kind::none;
  std::string file;  // of an external link: the name that it has
  std::string path;  // of a soft or external link: of the object that it leads to
};

// An identifier of the library, closed with its owner.
class H5Handle {
 public:
  using Close = int (*)(std::int64_t);
  H5Handle(std::int64_t id, Close close) : id_(id), close_(close) {}
  ~H5Handle() { reset(); }
  H5Handle(H5Handle&& other) noexcept : id_(other.id_), close_(other.close_) { other.id_ = -1; }
  H5Handle& operator=(H5Handle&&) = delete;

  std::int64_t id() const { return id_; }
  bool valid() const { return id_ >= 0; }
  bool reset();            // false when the library could not close it
  std::int64_t release();  // is no longer closed

 private:
  std::int64_t id_;
  Close close_;
};

// An open group or dataset (or the root group of a file) with its attributes.
class H5Object {
 public:
  H5Object(H5Handle handle, std::string file, std::string path);

  const std::string& path() const { return path_; }
  // Empty when there is no such attribute; throws when it is of another kind. Strings of fixed or
  // variable length.
  std::optional<std::string> string_attribute(const std::string& name) const;
  std::optional<std::int64_t> integer_attribute(const std::string& name) const;

  void write_attribute(const std::string& name, const std::string& value);  // UTF-8, fixed length
  void write_attribute(const std::string& name, std::int64_t value);
  void write_attribute(const std::string& name, std::uint32_t value);

 protected:
  bool has_attribute(const std::string& name) const;

  H5Handle handle_;
  std::string file_, path_;
};

class H5Dataset : public H5Object {
 public:
  // Throws bad_input where its data are in other files, unless it may.
  H5Dataset(H5Handle handle, std::string file, std::string path, bool may_lie_elsewhere = false);

  const H5DatasetInfo& info() const { return info_; }
  // For messages, also of other types: "int64", "float64 (big-endian)".
  std::string type_name() const;
  std::size_t element_bytes() const { return element_bytes_; }
  // Bytes of the elements first, first + 1, ... in C order, in the file's own element type, as many
  // as fit `bytes`.
  void read(std::int64_t first, std::span<std::byte> bytes) const;
  void write(std::int64_t first, std::span<const std::byte> bytes);

 private:
  template <typename Transfer>
  void for_each_box(std::int64_t first, std::size_t bytes, const Transfer& transfer) const;

  H5Handle properties_, type_, space_;
  std::size_t element_bytes_ = 0;
  H5DatasetInfo info_;
};

// A group, and what its links lead to. `name` is that of a hard link in this group.
class H5Group : public H5Object {
 public:
  using H5Object::H5Object;

  H5Link link(const std::string& name) const;
  // Throws bad_input where it is no group.
  H5Group group(const std::string& name) const;
  // `shown` is what messages call it. Throws bad_input where it is no dataset, and, unless
  // `may_lie_elsewhere`, where its data are in other files (external storage, a virtual dataset).
  H5Dataset dataset(const std::string& name, const std::string& shown, bool may_lie_elsewhere) const;
};

class H5File {
 public:
  // For reading. Throws bad_input: no such file, not an HDF5 file, truncated or damaged.
  static H5File open(const std::string& path);
  static bool is_hdf5(const std::string& path);  // a regular file that may be opened
  // A new, empty file, in the format of HDF5 1.8, whose metadata bear checksums; replaces what is
  // there. Throws bad_input when it cannot be created. Datasets of at least `alignment` bytes begin
  // at multiples of it.
  static H5File create(const std::string& path, std::size_t alignment = 1);

  const std::string& path() const { return path_; }
  int descriptor() const;  // of a file opened for reading; for pread()
  // Where it ends by its superblock: beyond that the library refuses to read.
  std::uint64_t end() const;
  bool holds(std::uint64_t offset, std::size_t bytes) const {
    return offset <= end() && bytes <= end() - offset;
  }
  H5Group root() const;

  // Groups on the way are created as needed.
  H5Object create_group(const std::string& path);
  H5Dataset create_dataset(const std::string& path, H5Type type, const std::vector<std::int64_t>& shape);
  void create_external_link(const std::string& path, const std::string& file, const std::string& target);
  // Writes out what the library still holds. Throws failure, e.g. on a full disk.
  void close();

 private:
  H5File(H5Handle handle, std::string path);

  void create_parents(const std::string& path);

  H5Handle handle_;
  std::string path_;
  std::set<std::string> created_;  // groups
};

// Of the library that runs, as "1.10.8".
std::string hdf5_version();

}  // namespace ptrt
