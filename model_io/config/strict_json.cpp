#include "model_io/config/strict_json.h"

#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>
#include <vector>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

using nlohmann::json;

// Deeper than any real file, and shallow enough for whoever walks the values by recursion.
constexpr std::size_t kMaxDepth = 64;
constexpr std::size_t kMaxShown = 60;

// Follows the text without keeping its values. The JSON library itself would keep the last of two
// equal keys silently, and copies or prints nested values by recursion.
class StrictCheck : public nlohmann::json_sax<json> {
 public:
  explicit StrictCheck(const std::string& what) : what_(what) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }

  bool start_object(std::size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override { return open(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    if (!keys_.back().insert(name).second)
      throw_bad_input("{}: key \"{}\" is given twice", what_, cut_short(name, kMaxShown));
    return true;
  }

  bool parse_error(std::size_t, const std::string&, const json::exception& error) override {
    // The library begins with its own name of the error, "[json.exception.parse_error.101] ".
    std::string reason = error.what();
    if (const std::size_t end = reason.find("] "); reason.starts_with("[json.") && end != std::string::npos)
      reason.erase(0, end + 2);
    throw_bad_input("{} is not valid JSON: {}", what_, cut_short(std::move(reason), 300));
  }

 private:
  bool open() {
    if (keys_.size() == kMaxDepth)
      throw_bad_input("{}: values are nested more than {} deep", what_, kMaxDepth);
    keys_.emplace_back();
    return true;
  }

  bool close() {
    keys_.pop_back();
    return true;
  }

  const std::string& what_;
  std::vector<std::unordered_set<std::string>> keys_;  // of each value that is open; none for arrays
};

}  // namespace

json parse_json_object(std::string_view text, const std::string& what) {
  StrictCheck check(what);
  json::sax_parse(text, &check);
  json parsed = json::parse(text);
  if (!parsed.is_object()) throw_bad_input("{} is not a JSON object: {}", what, shown(parsed));
  return parsed;
}

std::string cut_short(std::string text, std::size_t length) {
  if (text.size() <= length) return text;
  std::size_t end = length - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  text.resize(end);
  return text + "...";
}

std::string shown(const json& value) {
  const std::string text = cut_short(value.dump(-1, ' ', false, json::error_handler_t::replace), kMaxShown);
  return value.is_number_float() ? text + " (not an integer)" : text;
}

}  // namespace ptrt
