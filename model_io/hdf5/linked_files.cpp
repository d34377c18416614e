#include "model_io/hdf5/linked_files.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace ptrt {
namespace {

namespace fs = std::filesystem;

constexpr int kMostLinks = 16;  // on one path, as in the library: a circle ends

// Without "." and empty components, which lead nowhere: "/a/b", or "" for the root group.
std::string normal_path(const std::string& path) {
  std::string result;
  for (std::size_t at = 0; at < path.size();) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    const std::string component = path.substr(at, end - at);
    if (!component.empty() && component != ".") result += "/" + component;
    at = end + 1;
  }
  return result;
}

bool leaves_folder(const fs::path& name) {
  return name.is_absolute() || std::ranges::find(name, fs::path("..")) != name.end();
}

// Where the library looks for a linked file, in its order: HDF5_EXT_PREFIX, the folder of the file with
// the link, the working directory, and the folder that this file really lies in where its name is a
// symbolic link. An absolute name comes first as it is, then its last component alone.
std::vector<std::string> candidates(const std::string& from, const std::string& name) {
  std::vector<std::string> found;
  fs::path target(name);
  if (target.is_absolute()) {
    found.push_back(name);
    target = target.filename();
  }
  if (const char* variable = std::getenv("HDF5_EXT_PREFIX")) {
    const std::string prefixes = variable;
    for (std::size_t at = 0; at < prefixes.size();) {
      const std::size_t end = std::min(prefixes.find(':', at), prefixes.size());
      if (end > at) found.push_back((fs::path(prefixes.substr(at, end - at)) / target).string());
      at = end + 1;
    }
  }
  found.push_back((fs::path(from).parent_path() / target).string());
  found.push_back(target.string());
  std::error_code error;
  if (fs::is_symlink(from, error))
    if (const fs::path real = fs::canonical(from, error); !error)
      found.push_back((real.parent_path() / target).string());
  return found;
}

}  // namespace

LinkedFiles::LinkedFiles(const std::string& path, bool trusted) : trusted_(trusted) {
  files_.push_back(std::make_unique<H5File>(H5File::open(path)));
}

std::optional<LinkedFiles::Place> LinkedFiles::find(const std::string& path) {
  return find_in(main(), normal_path(path), 0);
}

const H5Group* LinkedFiles::find_group(const std::string& path) {
  const Node* node = group_in(main(), normal_path(path), 0);
  return node == nullptr ? nullptr : &node->group;
}

std::string LinkedFiles::file_of_group(const std::string& path) {
  try {
    const Node* node = group_in(main(), normal_path(path), 0);
    return node == nullptr ? main().path() : node->file->path();
  } catch (const MissingFile& missing) {
    return missing.file();
  }
}

std::string LinkedFiles::file_above(const std::string& path) {
  std::string object = normal_path(path);
  while (!object.empty()) {
    const std::size_t slash = object.rfind('/');
    if (const Node* node = group_in(main(), object.substr(0, slash), 0)) {
      const H5Link link = node->group.link(object.substr(slash + 1));
      const bool leads_on = link.kind == H5Link::Kind::external;  // into a file that lacks its target
      return leads_on ? linked_file(*node->file, object, link).path() : node->file->path();
    }
    object.resize(slash);
  }
  return main().path();
}

std::vector<const H5File*> LinkedFiles::opened() const {
  std::vector<const H5File*> all;
  for (const auto& file : files_) all.push_back(file.get());
  return all;
}

std::optional<LinkedFiles::Place> LinkedFiles::find_in(const H5File& file, const std::string& path,
                                                       int links) {
  if (links > kMostLinks)
    throw_bad_input("{}: more than {} links lead on from {}: a circle?", file.path(), kMostLinks, path);
  if (path.empty()) return Place{&file, nullptr, ""};
  const std::size_t slash = path.rfind('/');
  const std::string folder = path.substr(0, slash), name = path.substr(slash + 1);
  const Node* parent = group_in(file, folder, links);
  if (parent == nullptr) return std::nullopt;
  const H5Link link = parent->group.link(name);
  switch (link.kind) {
    case H5Link::Kind::none:
      return std::nullopt;
    case H5Link::Kind::hard:
      return Place{parent->file, &parent->group, name};
    case H5Link::Kind::soft: {
      const bool from_root = link.path.starts_with('/');
      const std::string target = from_root ? link.path : parent->group.path() + "/" + link.path;
      return find_in(*parent->file, normal_path(target), links + 1);
    }
    case H5Link::Kind::external:
      return find_in(linked_file(*parent->file, path, link), normal_path(link.path), links + 1);
    case H5Link::Kind::other:
      break;
  }
  throw_bad_input("{}: {} is a user-defined link, which is not followed", parent->file->path(), path);
}

const LinkedFiles::Node* LinkedFiles::group_in(const H5File& file, const std::string& path, int links) {
  const auto known = groups_.find({&file, path});
  if (known != groups_.end()) return known->second.get();
  std::unique_ptr<Node> node;
  if (path.empty()) {
    node = std::make_unique<Node>(&file, file.root());
  } else if (const auto place = find_in(file, path, links)) {
    node = std::make_unique<Node>(
        place->file, place->group == nullptr ? place->file->root() : place->group->group(place->name));
  }
  return groups_.insert_or_assign({&file, path}, std::move(node)).first->second.get();
}

const H5File& LinkedFiles::linked_file(const H5File& from, const std::string& path, const H5Link& link) {
  if (!trusted_ && leaves_folder(link.file))
    throw_bad_input(
        "{}: {} is an external link to the file {}: an absolute path or \"..\" in it is followed only with "
        "--trust-links",
        from.path(), path, link.file);
  const std::vector<std::string> places = candidates(from.path(), link.file);
  auto found = std::ranges::find_if(places, H5File::is_hdf5);
  if (found == places.end())  // opening it says what is wrong with it
    found = std::ranges::find_if(places, [](const std::string& place) {
      std::error_code error;
      return fs::exists(place, error);
    });
  if (found == places.end()) {
    const fs::path beside = fs::path(from.path()).parent_path() / link.file;
    throw MissingFile(beside.string(),
                      fmt::format("{}: {} lies in the file {}, which is missing; looked for {}", from.path(),
                                  path, link.file, fmt::join(places, ", ")));
  }
  for (const auto& file : files_)
    if (file->path() == *found) return *file;
  files_.push_back(std::make_unique<H5File>(H5File::open(*found)));
  return *files_.back();
}

}  // namespace ptrt
