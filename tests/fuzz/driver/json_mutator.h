#pragma once

#include <span>
#include <string>
#include <string_view>

#include "driver/random.h"

namespace ptrt::fuzz {

// What a format's JSON is made of.
struct JsonWords {
  std::span<const std::string_view> keys;
  std::span<const std::string_view> values;  // as JSON: "\"mean\"", "[1, 2]"
};

// A change to one value, key or member of JSON text. Most changes keep it valid JSON. Text that is no JSON, and one
// text in eight, is changed as bytes.
std::string mutate_json(std::string text, const JsonWords& words, Random& random);

}  // namespace ptrt::fuzz
