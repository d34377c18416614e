#include "model_io/tokenizer/huggingface/component.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/base/error.h"
#include "model_io/config/strict_json.h"

namespace ptrt::huggingface {

using nlohmann::json;

Component::Component(const json& value, std::string file, std::string path, std::string& unsupported)
    : value_(&value), file_(std::move(file)), path_(std::move(path)), unsupported_(&unsupported) {
  if (!value.is_object())
    throw_bad_input("{}: /tokenizer/model: {}: expected an object, found {}", file_, path_, shown(value));
}

std::string Component::type() const {
  return has("type") ? text("type") : std::string();
}

void Component::allow(std::initializer_list<std::string_view> keys) const {
  for (const auto& [key, item] : value_->items())
    if (key != "type" && std::ranges::find(keys, key) == keys.end())
      note_unsupported("the key " + shown(path_of(key)));
}

bool Component::has(std::string_view key) const {
  const auto found = value_->find(key);
  return found != value_->end() && !found->is_null();
}

const json& Component::value(std::string_view key) const {
  const auto found = value_->find(key);
  if (found == value_->end()) fail(key, "is missing");
  return *found;
}

bool Component::flag(std::string_view key, std::optional<bool> otherwise) const {
  if (otherwise && !has(key)) return *otherwise;
  if (!value(key).is_boolean()) fail_type(key, "true or false", value(key));
  return value(key).get<bool>();
}

std::int64_t Component::count(std::string_view key) const {
  const json& item = value(key);
  constexpr std::uint64_t kMax = std::numeric_limits<std::int32_t>::max();
  if (!item.is_number_unsigned() || item.get<std::uint64_t>() > kMax)
    fail_type(key, "an integer from 0 below 2^31", item);
  return item.get<std::int64_t>();
}

std::string Component::text(std::string_view key) const {
  if (!value(key).is_string()) fail_type(key, "a string", value(key));
  return value(key).get<std::string>();
}

Component Component::child(std::string_view key) const {
  return {value(key), file_, path_of(key), *unsupported_};
}

std::vector<Component> Component::children(std::string_view key) const {
  const json& items = value(key);
  if (!items.is_array()) fail_type(key, "an array", items);
  std::vector<Component> result;
  for (std::size_t i = 0; i < items.size(); ++i)
    result.emplace_back(items[i], file_, fmt::format("{}[{}]", path_of(key), i), *unsupported_);
  return result;
}

void Component::note_unsupported(std::string what) const {
  if (unsupported_->empty()) *unsupported_ = std::move(what);
}

void Component::note_unsupported_type() const {
  note_unsupported(fmt::format("{} of type {}", path_, shown(type())));
}

void Component::fail(std::string_view place, std::string_view problem) const {
  throw_bad_input("{}: /tokenizer/model: {:.200} {}", file_, path_of(place), problem);
}

void Component::fail_type(std::string_view key, std::string_view expected, const json& found) const {
  fail(key, fmt::format("must be {}, found {}", expected, shown(found)));
}

std::string Component::path_of(std::string_view key) const {
  return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
}

}  // namespace ptrt::huggingface
