#include "kernels/base/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <stdexcept>

#include "kernels/base/error.h"
#include "kernels/base/file_descriptor.h"

namespace ptrt {
namespace {

// Where memory runs out, `text` is all that was read.
bool read_all(int file, std::string& text) {
  constexpr std::size_t kPiece = std::size_t{64} << 10;
  struct stat status;
  if (fstat(file, &status) == 0 && S_ISREG(status.st_mode))
    text.reserve(static_cast<std::size_t>(status.st_size) + 1);
  for (std::size_t bytes = 0;;) {
    text.resize(std::max(text.capacity(), bytes + kPiece));
    const ssize_t found = read(file, text.data() + bytes, text.size() - bytes);
    if (found < 0 && errno == EINTR) continue;
    if (found > 0) bytes += static_cast<std::size_t>(found);
    if (found > 0) continue;
    text.resize(bytes);
    return found == 0;
  }
}

struct stat status_of(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) throw_bad_input("cannot read {}: {}", path, std::strerror(errno));
  return status;
}

}  // namespace

std::string read_text_file(const std::string& path, const char* what) {
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::string text;
  try {
    if (!file || !read_all(file.get(), text))
      throw_bad_input("cannot read {} {}: {}", what, path, std::strerror(errno));
  } catch (const std::bad_alloc&) {
    throw_failure("not enough memory to read {} {}", what, path);
  } catch (const std::length_error&) {
    throw_failure("not enough memory to read {} {}", what, path);
  }
  return text;
}

std::uint64_t file_bytes(const std::string& path) {
  return static_cast<std::uint64_t>(status_of(path).st_size);
}

std::string file_identity(const std::string& path) {
  const struct stat status = status_of(path);
  return fmt::format("{}:{}", status.st_dev, status.st_ino);
}

}  // namespace ptrt
