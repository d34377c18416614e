// The files of a model: the main one, and those that its links lead to. Each link is followed here, never
// by the HDF5 library, so that none leads where a model's author may not send its reader.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "model_io/hdf5/h5_file.h"

namespace ptrt {

// A link leads to a file that is not there.
class MissingFile : public Error {
 public:
  MissingFile(std::string file, const std::string& message)
      : Error(ExitCode::bad_input, message), file_(std::move(file)) {}
  const std::string& file() const { return file_; }

 private:
  std::string file_;
};

class LinkedFiles {
 public:
  // Opens the main file. Unless `trusted`, external links may only name files by a relative path without
  // "..": in the folders where the library looks for them, which are the user's own choice.
  LinkedFiles(const std::string& path, bool trusted);

  struct Place {
    const H5File* file = nullptr;
    const H5Group* group = nullptr;  // null: the object is the root group
    std::string name;                // of a hard link in the group
  };

  const H5File& main() const { return *files_.front(); }
  bool trusted() const { return trusted_; }
  // An object of the model by its path in the main file; none where a link on the way is missing. Throws
  // bad_input for a link that is not followed, and MissingFile.
  std::optional<Place> find(const std::string& path);
  // The same for a group, with the file it lies in; null where there is none.
  const H5Group* find_group(const std::string& path);
  // The file that holds a group; or would, where it is missing. Throws bad_input likewise.
  std::string file_of_group(const std::string& path);
  // The file that should hold an object: that of the nearest group above it, or of the link that ends
  // there. For messages about one that is missing.
  std::string file_above(const std::string& path);
  // Opened so far: the main one first.
  std::vector<const H5File*> opened() const;

 private:
  struct Node {
    Node(const H5File* f, H5Group g) : file(f), group(std::move(g)) {}
    const H5File* file;
    H5Group group;
  };

  std::optional<Place> find_in(const H5File& file, const std::string& path, int links);
  const Node* group_in(const H5File& file, const std::string& path, int links);
  const H5File& linked_file(const H5File& from, const std::string& path, const H5Link& link);

  bool trusted_;
  std::vector<std::unique_ptr<H5File>> files_;
  std::map<std::pair<const H5File*, std::string>, std::unique_ptr<Node>> groups_;  // null: there is none
};

}  // namespace ptrt
