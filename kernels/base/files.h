#pragma once

#include <cstdint>
#include <string>

namespace ptrt {

// The whole content of a file. Throws bad_input "cannot read WHAT PATH: REASON", e.g. with `what`
// "the configuration".
std::string read_text_file(const std::string& path, const char* what);

// The same for paths of this host that lead to one file, "DEVICE:INODE". Throws bad_input.
std::string file_identity(const std::string& path);

// Throws bad_input.
std::uint64_t file_bytes(const std::string& path);

}  // namespace ptrt
