#include "kernels/base/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>
#include <utility>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

namespace fs = std::filesystem;

constexpr int kAttempts = 100;
constexpr mode_t kMode = 0666;  // less the umask

// The file that a chain of symbolic links ends at, whether or not it exists.
std::string behind_links(const std::string& path) {
  std::error_code ignored;
  if (!fs::is_symlink(fs::symlink_status(path, ignored))) return path;
  const fs::path target = fs::weakly_canonical(path, ignored);
  return target.empty() ? path : target.string();
}

bool is_special(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode);
}

// A rename is on disk when its directory is. Some file systems cannot sync one.
void sync_directory_of(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  const int directory = open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return;
  fsync(directory);
  close(directory);
}

// Pipes and some file systems do not support fsync (EINVAL).
bool sync_file(int descriptor) {
  return fsync(descriptor) == 0 || errno == EINVAL;
}

}  // namespace

std::string create_temporary_beside(const std::string& path) {
  std::random_device random;
  for (int i = 0; i < kAttempts; i++) {
    std::string name = fmt::format("{}.{:08x}.tmp", path, random());
    const int descriptor = open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, kMode);
    if (descriptor >= 0) {
      close(descriptor);
      return name;
    }
    if (errno != EEXIST) break;
  }
  throw_bad_input("cannot write {}: {}", path, std::strerror(errno));
}

void publish_temporary(const std::string& temporary, const std::string& path) {
  const int descriptor = open(temporary.c_str(), O_RDONLY | O_CLOEXEC);
  const bool synced = descriptor >= 0 && sync_file(descriptor);
  const int error = errno;
  if (descriptor >= 0) close(descriptor);
  if (!synced) throw_failure("cannot write {}: {}", temporary, std::strerror(error));
  if (std::rename(temporary.c_str(), path.c_str()) != 0)
    throw_failure("cannot rename {} to {}: {}", temporary, path, std::strerror(errno));
  sync_directory_of(path);
}

OutputFile::OutputFile(const std::string& path) : path_(behind_links(path)) {
  if (!is_special(path_)) temporary_ = create_temporary_beside(path_);
  descriptor_ = open(temporary_.empty() ? path.c_str() : temporary_.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor_ < 0) throw_bad_input("cannot write {}: {}", path, std::strerror(errno));
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) close(descriptor_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void OutputFile::write(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(descriptor_, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw_failure("cannot write {}: {}", path_, std::strerror(errno));
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

void OutputFile::publish() {
  if (close(std::exchange(descriptor_, -1)) != 0)
    throw_failure("cannot write {}: {}", path_, std::strerror(errno));
  if (temporary_.empty()) return;
  publish_temporary(temporary_, path_);
  temporary_.clear();
}

bool is_same_file(const std::string& a, const std::string& b) {
  struct stat of_a, of_b;
  const bool a_exists = stat(a.c_str(), &of_a) == 0, b_exists = stat(b.c_str(), &of_b) == 0;
  if (a_exists != b_exists) return false;
  if (a_exists)
    return (S_ISREG(of_a.st_mode) || S_ISDIR(of_a.st_mode)) && of_a.st_dev == of_b.st_dev &&
           of_a.st_ino == of_b.st_ino;
  std::error_code ignored;
  const fs::path place_a = fs::weakly_canonical(a, ignored), place_b = fs::weakly_canonical(b, ignored);
  return place_a == place_b && !place_a.empty();
}

void check_outputs(std::span<const NamedFile> outputs, std::span<const NamedFile> inputs) {
  for (std::size_t i = 0; i < outputs.size(); i++) {
    const NamedFile& output = outputs[i];
    for (const NamedFile& input : inputs)
      if (is_same_file(output.path, input.path))
        throw_bad_input("{} {} would overwrite {} {}", output.label, output.path, input.label, input.path);
    for (const NamedFile& other : outputs.first(i))
      if (is_same_file(output.path, other.path))
        throw_bad_input("{} {} and {} {} are one file", other.label, other.path, output.label, output.path);
  }
}

}  // namespace ptrt
