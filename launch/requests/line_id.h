// The id that a line of a request file uses up, without the cost of the whole request.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace ptrt {

// As RequestParser::parse() takes it: the line's own id, or its number as text. None of a line that it rejects
// before it has come to the id.
std::optional<std::string> id_of_line(std::string_view text, std::int64_t number);

}  // namespace ptrt
