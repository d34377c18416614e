// Strict JSON: one object, no key twice, a limited depth.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace ptrt {

// Throws bad_input where `text` is no such JSON; messages begin with `what` ("m.h5: the config").
nlohmann::json parse_json_object(std::string_view text, const std::string& what);

// A value as messages show it: its JSON, cut short; with its type where the JSON does not show it.
std::string shown(const nlohmann::json& value);

}  // namespace ptrt
