#include "launch/requests/fields.h"

#include <cmath>

#include "launch/requests/bad_request.h"
#include "model_io/config/strict_json.h"

namespace ptrt {
namespace {

using nlohmann::json;

constexpr std::size_t kLongestName = 60;   // in messages
constexpr std::size_t kMostIgnored = 100;  // names that have a count of their own

std::string shown_name(std::string_view name) {
  return cut_short(std::string(name), kLongestName);
}

const char* name_of_form(FieldForms form) {
  switch (form) {
    case kCompletions:
      return "a body of /v1/completions";
    case kChat:
      return "a body of /v1/chat/completions";
    case kEnvelope:
      return "an OpenAI batch line";
    default:
      return "a plain request";
  }
}

std::string range_text(const NumberRange& range) {
  const bool bounded = std::isfinite(range.high);
  if (range.above)
    return bounded ? fmt::format("above {} and at most {}", range.low, range.high)
                   : fmt::format("above {}", range.low);
  return bounded ? fmt::format("from {} to {}", range.low, range.high)
                 : fmt::format("of {} or more", range.low);
}

}  // namespace

void reject_type(std::string_view key, const char* expected, const json& found) {
  reject("invalid_request", "'{}' must be {}, found {} ({})", key, expected, found.type_name(),
         found.is_structured() ? fmt::format("{} elements", found.size())
                               : cut_short(found.dump(-1, ' ', false, json::error_handler_t::replace), 60));
}

void IgnoredFields::add(std::string_view name) {
  const std::string shown = shown_name(name);
  if (const auto known = counts_.find(shown); known != counts_.end())
    known->second++;
  else if (counts_.size() < kMostIgnored)
    counts_.emplace(shown, 1);
  else
    others_++;
}

std::string IgnoredFields::text() const {
  std::string text;
  const auto add = [&](const std::string& what, std::int64_t lines) {
    text += fmt::format("{}{} ({} line{})", text.empty() ? "" : ", ", what, lines, lines == 1 ? "" : "s");
  };
  for (const auto& [name, lines] : counts_) add(fmt::format("'{}'", name), lines);
  if (others_ > 0) add("others", others_);
  return text;
}

Fields::Fields(const json& object, FieldForms form, Task task) : form_(form) {
  const FieldTasks wanted = task == Task::score ? kScore : kGenerate;
  fields_.reserve(object.size());
  for (auto item = object.begin(); item != object.end(); ++item) {
    if (item->is_null()) continue;
    const std::size_t first = first_row(item.key());
    const FieldRule* rule = find_field(item.key(), first, form);
    if (rule != nullptr && (rule->tasks & wanted) == 0) {
      if (task == Task::score) continue;
      rule = nullptr;  // only `score` has it
    }
    fields_.push_back({item.key(), &*item, rule});
    if (rule != nullptr) given_.set(first);
  }
}

void Fields::refuse_unsupported(IgnoredFields* ignored) const {
  for (const auto& [name, value, rule, is_read] : fields_) {
    if (rule == nullptr) {
      if (ignored != nullptr) {
        ignored->add(name);
        continue;
      }
      const std::string_view meant = similar_field(name, form_);
      reject("unsupported_field",
             "'{}' is not a field of {} (--ignore-unknown-fields runs the line without it){}",
             shown_name(name), name_of_form(form_),
             meant.empty() || meant == name ? "" : fmt::format("; is '{}' meant?", meant));
    }
    if (rule->standing == Standing::refused &&
        (rule->neutral.empty() || *value != json::parse(rule->neutral)))
      reject("unsupported", "'{}' is not supported{}, found {}", name,
             rule->neutral.empty() ? "" : fmt::format(", except as {}", rule->neutral), shown(*value));
  }
}

void Fields::refuse_unread() const {
  for (const auto& [name, value, rule, is_read] : fields_)
    if (rule != nullptr && rule->standing == Standing::read && !is_read)
      reject("unsupported_field", "'{}' has no meaning in this line, beside its other fields", name);
}

const json* Fields::find(FieldName name) const {
  if (!given_[name.first_row()]) return nullptr;
  for (const Field& field : fields_)
    if (field.rule != nullptr && field.name == name.text()) {
      field.is_read = true;
      return field.value;
    }
  return nullptr;
}

std::int64_t Fields::integer(FieldName name, std::int64_t otherwise, std::int64_t low,
                             std::int64_t high) const {
  return integer(name, low, high).value_or(otherwise);
}

std::optional<std::int64_t> Fields::integer(FieldName name, std::int64_t low, std::int64_t high) const {
  const json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer()) reject_type(name.text(), "an integer", *value);
  const bool too_large =
      value->is_number_unsigned() && value->get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX);
  if (too_large || value->get<std::int64_t>() < low || value->get<std::int64_t>() > high)
    reject("invalid_request", "'{}' must be an integer from {} to {}, found {}", name.text(), low, high,
           value->dump());
  return value->get<std::int64_t>();
}

float Fields::number(FieldName name, float otherwise, const NumberRange& range) const {
  const json* value = find(name);
  if (value == nullptr) return otherwise;
  if (!value->is_number()) reject_type(name.text(), "a number", *value);
  const auto given = value->get<double>();
  const auto number = static_cast<float>(given);
  const bool fits = std::isfinite(number) && number >= range.low && given <= range.high &&
                    (!range.above || number > range.low);
  if (!fits)
    reject("invalid_request", "'{}' must be a float32 number {}, found {}", name.text(), range_text(range),
           given);
  return number;
}

bool Fields::flag(FieldName name, bool otherwise) const {
  const json* value = find(name);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) reject_type(name.text(), "true or false", *value);
  return value->get<bool>();
}

std::optional<std::string> Fields::text(FieldName name) const {
  const json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) reject_type(name.text(), "a string", *value);
  return value->get<std::string>();
}

std::vector<std::string> Fields::texts(FieldName name, bool single) const {
  const json* value = find(name);
  std::vector<std::string> texts;
  if (value == nullptr) return texts;
  if (single && value->is_string()) {
    texts.push_back(value->get<std::string>());
  } else if (!value->is_array()) {
    reject_type(name.text(), single ? "a string or an array of strings" : "an array of strings", *value);
  } else {
    for (const json& item : *value) {
      if (!item.is_string()) reject_type(name.text(), "an array of strings", item);
      texts.push_back(item.get<std::string>());
    }
  }
  for (const std::string& item : texts)
    if (item.empty()) reject("invalid_request", "'{}' holds an empty string", name.text());
  return texts;
}

}  // namespace ptrt
