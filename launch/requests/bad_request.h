// How the parsing of a request line ends early.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json_fwd.hpp>
#include <utility>

#include "launch/requests/request_line.h"

namespace ptrt {

// Thrown to end the parsing of one line, which becomes an error line.
struct BadRequest {
  RequestError error;
};

template <typename... Args>
[[noreturn]] void reject(const char* code, fmt::format_string<Args...> format, Args&&... args) {
  throw BadRequest{{code, fmt::format(format, std::forward<Args>(args)...)}};
}

// "'KEY' must be EXPECTED, found …".
[[noreturn]] void reject_type(std::string_view key, const char* expected, const nlohmann::json& found);

}  // namespace ptrt
