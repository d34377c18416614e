// A quick reader of the JSON that most request lines are.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

namespace ptrt {

// The value that the library reads of `text`, several times as fast. None where the text is no JSON, and where it has
// what this reader does not know: characters beyond ASCII, escapes \u, a key twice, values nested deeper than
// `deepest`, numbers beyond 18 digits or the range of double.
std::optional<nlohmann::json> read_quickly(std::string_view text, std::size_t deepest);

}  // namespace ptrt
