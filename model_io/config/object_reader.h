// Reads one JSON object of the configuration key by key; every message names the key by its full path.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "model_io/config/strict_json.h"

namespace ptrt {

// The text of a value that the file gives as a string.
template <typename Value>
struct Name {
  std::string_view text;
  Value value;
};

template <typename Value, std::size_t N>
std::string_view name_of(const std::array<Name<Value>, N>& names, Value value) {
  for (const auto& name : names)
    if (name.value == value) return name.text;
  throw_failure("a configuration holds an enumerator without a name");
}

class ObjectReader {
 public:
  using json = nlohmann::json;

  // Throws bad_input that names a key which is not among `known`.
  ObjectReader(const json& object, std::string where, std::string prefix,
               std::span<const std::string_view> known)
      : object_(object), where_(std::move(where)), prefix_(std::move(prefix)) {
    for (const auto& [key, value] : object.items())
      if (std::find(known.begin(), known.end(), key) == known.end())
        throw_bad_input("{}: unknown config key \"{}{}\"", where_, prefix_, key);
  }

  bool has_value(const std::string& key) const { return object_.contains(key) && !object_[key].is_null(); }

  const json& value(const std::string& key) const {
    if (!object_.contains(key)) throw_bad_input("{}: config key \"{}{}\" is missing", where_, prefix_, key);
    return object_[key];
  }

  std::int64_t integer(const std::string& key) const { return as_integer(key, value(key), "an integer"); }

  double number(const std::string& key) const {
    if (!value(key).is_number()) fail(key, "a number", value(key));
    return value(key).get<double>();
  }

  bool boolean(const std::string& key) const {
    if (!value(key).is_boolean()) fail(key, "true or false", value(key));
    return value(key).get<bool>();
  }

  std::string string(const std::string& key) const {
    if (!value(key).is_string()) fail(key, "a string", value(key));
    return value(key).get<std::string>();
  }

  const json& object(const std::string& key) const {
    if (!value(key).is_object()) fail(key, "an object", value(key));
    return value(key);
  }

  std::vector<std::int64_t> integers(const std::string& key) const {
    std::vector<std::int64_t> result;
    for (const json& item : array(key, "an array of integers"))
      result.push_back(as_integer(key, item, "an array of integers"));
    return result;
  }

  template <typename Value, std::size_t N>
  Value choice(const std::string& key, const std::array<Name<Value>, N>& names) const {
    return as_choice(key, value(key), names);
  }

  template <typename Value, std::size_t N>
  std::vector<Value> choices(const std::string& key, const std::array<Name<Value>, N>& names) const {
    std::vector<Value> result;
    for (const json& item : array(key, "an array of strings")) result.push_back(as_choice(key, item, names));
    return result;
  }

  // A list without repetition, as a struct with one flag for each of its possible entries.
  template <typename Set, std::size_t N>
  Set flags(const std::string& key, const std::array<Name<bool Set::*>, N>& names) const {
    Set set{};
    for (const auto& name : names) set.*name.value = false;
    for (const auto member : choices(key, names)) {
      if (set.*member)
        throw_bad_input("{}: config key \"{}{}\": \"{}\" is given twice", where_, prefix_, key,
                        name_of(names, member));
      set.*member = true;
    }
    return set;
  }

 private:
  [[noreturn]] void fail(const std::string& key, std::string_view expected, const json& found) const {
    throw_bad_input("{}: config key \"{}{}\": expected {}, found {}", where_, prefix_, key, expected,
                    shown(found));
  }

  const json& array(const std::string& key, std::string_view expected) const {
    if (!value(key).is_array()) fail(key, expected, value(key));
    return value(key);
  }

  std::int64_t as_integer(const std::string& key, const json& item, std::string_view expected) const {
    if (!item.is_number_integer()) fail(key, expected, item);
    if (item.is_number_unsigned() && item.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX))
      fail(key, "an integer below 2^63", item);
    return item.get<std::int64_t>();
  }

  template <typename Value, std::size_t N>
  Value as_choice(const std::string& key, const json& item, const std::array<Name<Value>, N>& names) const {
    if (item.is_string())
      for (const auto& name : names)
        if (item.get_ref<const std::string&>() == name.text) return name.value;
    std::string list;
    for (const auto& name : names) list += fmt::format("{}\"{}\"", list.empty() ? "" : ", ", name.text);
    fail(key, "one of " + list, item);
  }

  const json& object_;
  std::string where_, prefix_;
};

}  // namespace ptrt
