// A quick reader of the JSON that most request lines are.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

namespace ptrt {

// The value that the library reads of `text`, in fewer passes. None where the text is no JSON or no UTF-8, and where
// it has what this reader leaves to the library: a key twice, values nested deeper than `deepest`, integers beyond 64
// bits, other numbers beyond the range of double.
std::optional<nlohmann::json> read_quickly(std::string_view text, std::size_t deepest);

}  // namespace ptrt
