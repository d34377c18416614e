// The components of a tokenizer.json as they are read, key by key. What is broken is bad input and
// names the key by its full path; what is well-formed but cannot be run by this program is noted,
// and reading continues.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ptrt::huggingface {

class Component {
 public:
  // `value` must outlive the component and be an object. `unsupported` gets the first thing that
  // cannot be run: "normalizer \"Nmt\"". `file` begins every message, `path` names the component:
  // "decoder.decoders[1]".
  Component(const nlohmann::json& value, std::string file, std::string path, std::string& unsupported);

  const std::string& path() const { return path_; }
  std::string type() const;  // value of the key "type"; "" where there is none
  // Notes every key other than "type" and these as unsupported.
  void allow(std::initializer_list<std::string_view> keys) const;

  bool has(std::string_view key) const;  // it is there and not null
  const nlohmann::json& value(std::string_view key) const;
  bool flag(std::string_view key, std::optional<bool> otherwise = {}) const;
  std::int64_t count(std::string_view key) const;  // 0 … 2^31 - 1
  std::string text(std::string_view key) const;
  Component child(std::string_view key) const;
  std::vector<Component> children(std::string_view key) const;  // an array of objects

  void note_unsupported(std::string what) const;
  void note_unsupported_type() const;
  // `place`: a key, or more of the path: "merges[3]".
  [[noreturn]] void fail(std::string_view place, std::string_view problem) const;
  [[noreturn]] void fail_type(std::string_view key, std::string_view expected,
                              const nlohmann::json& found) const;

 private:
  std::string path_of(std::string_view key) const;

  const nlohmann::json* value_;
  std::string file_, path_;
  std::string* unsupported_;
};

}  // namespace ptrt::huggingface
