#include "launch/job/report_files.h"

namespace ptrt {
namespace {

using nlohmann::ordered_json;

void write_text(const std::string& path, const std::string& text) {
  OutputFile out(path);
  out.write(text);
  out.publish();
}

// {"a": {"b": 1}} as a_b = 1, without the model's configuration.
ordered_json flat(const ordered_json& object) {
  ordered_json result;
  for (const auto& [name, value] : object.items()) {
    if (name == "config") continue;
    if (!value.is_object())
      result[name] = value;
    else
      for (const auto& [inner, figure] : value.items()) result[name + "_" + inner] = figure;
  }
  return result;
}

std::string csv_field(const ordered_json& value) {
  if (!value.is_string()) return json_text(value);
  std::string text = "\"";
  for (const char c : value.get<std::string>()) {
    if (c == '"') text += '"';
    text += c;
  }
  text += '"';
  return text;
}

}  // namespace

std::string json_text(const ordered_json& value, int indent) {
  return value.dump(indent, ' ', false, ordered_json::error_handler_t::replace);
}

void check_reports(std::span<const NamedFile> reports, std::span<const NamedFile> inputs) {
  check_outputs(reports, inputs);
  for (const NamedFile& report : reports)
    if (!report.path.empty()) check_writable(report.path);
}

void write_json(const std::string& path, const std::vector<ordered_json>& runs) {
  const ordered_json whole = runs.size() == 1 ? runs[0] : ordered_json{{"runs", runs}};
  write_text(path, json_text(whole, 2) + "\n");
}

void write_csv(const std::string& path, const std::vector<ordered_json>& runs) {
  std::string text;
  for (const ordered_json& run : runs) {
    std::string names, values;
    const ordered_json row = flat(run);
    for (const auto& [name, value] : row.items()) {
      if (!names.empty()) names += ',', values += ',';
      names += name;
      values += csv_field(value);
    }
    if (text.empty()) text = names + "\n";
    text += values + "\n";
  }
  write_text(path, text);
}

}  // namespace ptrt
