#pragma once

#include <cstdint>
#include <string>

namespace ptrt {

// The whole content of a file. Throws bad_input "cannot read WHAT PATH: REASON", e.g. with `what`
// "the configuration".
std::string read_text_file(const std::string& path, const char* what);

// Throws bad_input.
std::uint64_t file_bytes(const std::string& path);

}  // namespace ptrt
