#include "launch/requests/quick_json.h"

#include <charconv>
#include <cmath>
#include <string>
#include <system_error>
#include <utility>

namespace ptrt {
namespace {

using nlohmann::json;

constexpr std::ptrdiff_t kMostDigits = 18;  // fit 64 bits with a sign

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

// Each function reads from at_ on, and returns whether it could.
class QuickReader {
 public:
  QuickReader(std::string_view text, std::size_t deepest)
      : at_(text.data()), end_(text.data() + text.size()), deepest_(deepest) {}

  bool whole(json& to) { return value(to, 0) && (skip_space(), at_ == end_); }

 private:
  void skip_space() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\r' || *at_ == '\n')) at_++;
  }
  bool take(char wanted) {
    if (at_ == end_ || *at_ != wanted) return false;
    at_++;
    return true;
  }
  bool take_word(std::string_view word) {
    if (!std::string_view(at_, end_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }

  bool value(json& to, std::size_t depth) {
    skip_space();
    if (at_ == end_) return false;
    switch (*at_) {
      case '{':
        return depth < deepest_ && object(to, depth + 1);
      case '[':
        return depth < deepest_ && array(to, depth + 1);
      case '"':
        return string(*(to = json::string_t()).get_ptr<json::string_t*>());
      case 't':
        to = true;
        return take_word("true");
      case 'f':
        to = false;
        return take_word("false");
      case 'n':
        return take_word("null");
      default:
        return number(to);
    }
  }

  bool object(json& to, std::size_t depth) {
    at_++;
    auto& fields = (to = json::object()).get_ref<json::object_t&>();
    if (skip_space(), take('}')) return true;
    for (;;) {
      std::string name;
      if (skip_space(), !string(name)) return false;
      const auto [field, is_new] = fields.emplace(std::move(name), nullptr);
      if (!is_new || (skip_space(), !take(':')) || !value(field->second, depth)) return false;
      if (skip_space(), take('}')) return true;
      if (!take(',')) return false;
    }
  }

  bool array(json& to, std::size_t depth) {
    at_++;
    auto& items = (to = json::array()).get_ref<json::array_t&>();
    if (skip_space(), take(']')) return true;
    for (;;) {
      if (!value(items.emplace_back(), depth)) return false;
      if (skip_space(), take(']')) return true;
      if (!take(',')) return false;
    }
  }

  bool string(std::string& to) {
    if (!take('"')) return false;
    for (;;) {
      const char* const from = at_;
      while (at_ < end_ && *at_ >= ' ' && *at_ <= '~' && *at_ != '"' && *at_ != '\\') at_++;
      to.append(from, at_);
      if (take('"')) return true;
      if (!take('\\') || at_ == end_) return false;
      constexpr std::string_view kNames = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
      const std::size_t escape = kNames.find(*at_++);
      if (escape == std::string_view::npos) return false;
      to += kMeant[escape];
    }
  }

  bool digits() {
    const char* const from = at_;
    while (at_ < end_ && is_digit(*at_)) at_++;
    return at_ > from;
  }

  bool number(json& to) {
    const char* const from = at_;
    const bool negative = take('-');
    const char* const first = at_;
    if (!digits() || (*first == '0' && at_ - first > 1)) return false;
    const bool is_integer = at_ == end_ || (*at_ != '.' && *at_ != 'e' && *at_ != 'E');
    if (is_integer) return at_ - first <= kMostDigits && integer(from, negative, to);
    if (take('.') && !digits()) return false;
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      if (!digits()) return false;
    }
    double number = 0;
    const auto [end, error] = std::from_chars(from, at_, number);
    to = number;
    return error == std::errc() && end == at_ && std::isfinite(number);
  }

  bool integer(const char* from, bool negative, json& to) const {
    json::number_integer_t number = 0;
    std::from_chars(from, at_, number);
    if (negative)
      to = number;
    else
      to = static_cast<json::number_unsigned_t>(number);
    return true;
  }

  const char* at_;
  const char* end_;
  std::size_t deepest_;
};

}  // namespace

std::optional<json> read_quickly(std::string_view text, std::size_t deepest) {
  std::optional<json> value(std::in_place);
  if (!QuickReader(text, deepest).whole(*value)) value.reset();
  return value;
}

}  // namespace ptrt
