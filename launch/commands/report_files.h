// Figures of a command as JSON and CSV files. Both throw bad_input where a file cannot be written.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace ptrt {

// One run: its object; several: {"runs": [...]}.
void write_json(const std::string& path, const std::vector<nlohmann::ordered_json>& runs);
// A line of names, then one a run; nested figures as name_p50.
void write_csv(const std::string& path, const std::vector<nlohmann::ordered_json>& runs);

}  // namespace ptrt
