// Strict JSON: one object, no key twice, a limited depth.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace ptrt {

// Throws bad_input where `text` is no such JSON; messages begin with `what` ("m.h5: the config").
nlohmann::json parse_json_object(std::string_view text, const std::string& what);

// UTF-8 text for messages: at most `length` bytes of it, whole characters, "..." at the end where it is cut.
std::string cut_short(std::string text, std::size_t length);

// A value as messages show it: its JSON, cut short; with its type where the JSON does not show it.
std::string shown(const nlohmann::json& value);

}  // namespace ptrt
