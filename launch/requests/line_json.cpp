#include "launch/requests/line_json.h"

#include <utility>
#include <vector>

#include "launch/requests/bad_request.h"
#include "launch/requests/quick_json.h"
#include "launch/streams/request_input.h"

namespace ptrt {
namespace {

using nlohmann::json;

// Makes the value, as the library's own reader does.
class Reader final : public nlohmann::json_sax<json> {
 public:
  explicit Reader(LineJson& line) : line_(line) {}

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(json::number_integer_t value) override { return put(value); }
  bool number_unsigned(json::number_unsigned_t value) override { return put(value); }
  bool number_float(json::number_float_t value, const std::string&) override { return put(value); }
  bool string(std::string& value) override { return put(std::move(value)); }
  bool binary(json::binary_t&) override { return false; }  // JSON has none
  bool start_object(std::size_t) override { return open(json::object()); }
  bool start_array(std::size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(std::string& name) override {
    const auto [item, is_new] = open_.back()->get_ref<json::object_t&>().emplace(name, nullptr);
    if (!is_new && !std::exchange(line_.has_twice, true)) line_.key_twice = name;
    slot_ = &item->second;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

  bool too_deep() const { return too_deep_; }

 private:
  bool put(json&& value) {
    place(std::move(value));
    return true;
  }
  bool open(json&& value) {
    too_deep_ = open_.size() == kDeepestLine;
    if (too_deep_) return false;
    open_.push_back(&place(std::move(value)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }
  // An open value stays where it is: what it is part of grows only when it is closed.
  json& place(json&& value) {
    if (open_.empty()) return line_.value = std::move(value);
    if (open_.back()->is_object()) return *slot_ = std::move(value);
    auto& array = open_.back()->get_ref<json::array_t&>();
    return array.emplace_back(std::move(value));
  }

  LineJson& line_;
  std::vector<json*> open_;
  json* slot_ = nullptr;  // of the key read last
  bool too_deep_ = false;
};

}  // namespace

const char* problem_of_bytes(std::string_view text) {
  if (text.find('\0') != std::string_view::npos) return "has a NUL byte";
  if (text.starts_with(kByteOrderMark))
    return "begins with a byte order mark, which only the first line of a file may";
  return nullptr;
}

LineJson read_line_json(std::string_view text, std::int64_t number) {
  if (const char* problem = problem_of_bytes(text)) reject("invalid_json", "line {} {}", number + 1, problem);
  if (auto value = read_quickly(text, kDeepestLine)) return {.value = std::move(*value), .key_twice = {}};
  return read_by_library(text, number);
}

LineJson read_by_library(std::string_view text, std::int64_t number) {
  LineJson line;
  Reader reader(line);
  if (json::sax_parse(text, &reader)) return line;
  if (reader.too_deep())
    reject("invalid_json", "line {} has values nested more than {} deep", number + 1, kDeepestLine);
  reject("invalid_json", "line {} is not valid JSON", number + 1);
}

}  // namespace ptrt
