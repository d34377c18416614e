// The JSON of a request line, which is stricter than the library's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace ptrt {

// Values within values: copies, messages and the Python helper walk them by recursion.
inline constexpr std::size_t kDeepestLine = 256;

// What makes the bytes of a line no JSON although the library reads on, or stops, without a word; else null.
const char* problem_of_bytes(std::string_view text);

struct LineJson {
  nlohmann::json value;
  std::string key_twice;  // the first key that an object gives again, where has_twice; its last value counts
  bool has_twice = false;
};

// Throws BadRequest, invalid_json, which names line `number` + 1.
LineJson read_line_json(std::string_view text, std::int64_t number);
// The same, but without the quick reader (quick_json.h): its reference. The bytes have no problem.
LineJson read_by_library(std::string_view text, std::int64_t number);

}  // namespace ptrt
