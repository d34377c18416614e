#include "kernels/base/files.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "kernels/base/error.h"

namespace ptrt {

std::string read_text_file(const std::string& path, const char* what) {
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  if (!in) throw_bad_input("cannot read {} {}: {}", what, path, std::strerror(errno));
  std::ostringstream text;
  errno = 0;
  // An empty file sets failbit too, but leaves no error.
  if (!(text << in.rdbuf()) && errno != 0)
    throw_bad_input("cannot read {} {}: {}", what, path, std::strerror(errno));
  return std::move(text).str();
}

}  // namespace ptrt
