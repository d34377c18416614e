// Figures of a command as JSON and CSV files, which appear when they are whole.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/output_file.h"

namespace ptrt {

// Before a command runs, which may take hours: throws bad_input if a report would overwrite an input or
// another report, or cannot be written. An empty path is no report.
void check_reports(std::span<const NamedFile> reports, std::span<const NamedFile> inputs);

// An object in one line, or indented. A path in it may not be UTF-8.
std::string json_text(const nlohmann::ordered_json& value, int indent = -1);

// Both throw bad_input where the file cannot be created, failure where it cannot be written.
// One run: its object; several: {"runs": [...]}.
void write_json(const std::string& path, const std::vector<nlohmann::ordered_json>& runs);
// A line of names, then one a run; nested figures as name_p50.
void write_csv(const std::string& path, const std::vector<nlohmann::ordered_json>& runs);

}  // namespace ptrt
