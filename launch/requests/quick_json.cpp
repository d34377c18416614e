#include "launch/requests/quick_json.h"

#include <charconv>
#include <cstdint>
#include <string>
#include <system_error>
#include <utility>

#include "model_io/text/unicode.h"

namespace ptrt {
namespace {

using nlohmann::json;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool is_ascii(char c) {
  return static_cast<unsigned char>(c) < 0x80;
}

// May stand in a string as it is. Of characters beyond ASCII, each byte.
bool is_plain(char c) {
  return static_cast<unsigned char>(c) >= ' ' && c != '"' && c != '\\';
}

// The two halves of characters beyond 16 bits.
constexpr char32_t kHighHalf = 0xD800, kLowHalf = 0xDC00, kAfterHalves = 0xE000, kBeyond16Bits = 0x10000;

// Each function reads from at_ on, and returns whether it could.
class QuickReader {
 public:
  QuickReader(std::string_view text, std::size_t deepest)
      : at_(text.data()), end_(text.data() + text.size()), deepest_(deepest) {}

  bool whole(json& to) {
    if (!value(to, 0)) return false;
    skip_space();
    return at_ == end_;
  }

 private:
  void skip_space() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\r' || *at_ == '\n')) at_++;
  }
  bool take(char wanted) {
    if (at_ == end_ || *at_ != wanted) return false;
    at_++;
    return true;
  }
  bool take_next(char wanted) {
    skip_space();
    return take(wanted);
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
    if (take_next('}')) return true;
    for (;;) {
      std::string name;
      skip_space();
      if (!string(name)) return false;
      const auto [field, is_new] = fields.emplace(std::move(name), nullptr);
      if (!is_new || !take_next(':') || !value(field->second, depth)) return false;
      if (take_next('}')) return true;
      if (!take(',')) return false;
    }
  }

  bool array(json& to, std::size_t depth) {
    at_++;
    auto& items = (to = json::array()).get_ref<json::array_t&>();
    if (take_next(']')) return true;
    for (;;) {
      if (!value(items.emplace_back(), depth)) return false;
      if (take_next(']')) return true;
      if (!take(',')) return false;
    }
  }

  bool string(std::string& to) {
    if (!take('"')) return false;
    for (;;) {
      if (!plain_bytes(to)) return false;
      if (take('"')) return true;
      if (!take('\\') || !escape(to)) return false;
    }
  }

  bool plain_bytes(std::string& to) {
    const char* const from = at_;
    while (at_ < end_ && is_plain(*at_) && is_ascii(*at_)) at_++;
    const char* const other = at_;
    while (at_ < end_ && is_plain(*at_)) at_++;
    to.append(from, at_);
    return other == at_ || is_utf8({other, at_});
  }

  // After the backslash.
  bool escape(std::string& to) {
    if (at_ == end_) return false;
    if (take('u')) return numbered_character(to);
    constexpr std::string_view kNames = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    const std::size_t which = kNames.find(*at_++);
    if (which == std::string_view::npos) return false;
    to += kMeant[which];
    return true;
  }

  bool numbered_character(std::string& to) {
    char32_t c = 0;
    if (!four_digits(c)) return false;
    if (c >= kHighHalf && c < kAfterHalves) {
      char32_t low = 0;
      if (c >= kLowHalf || !take_word("\\u") || !four_digits(low)) return false;
      if (low < kLowHalf || low >= kAfterHalves) return false;
      c = kBeyond16Bits + ((c - kHighHalf) << 10) + (low - kLowHalf);
    }
    append_character(to, c);
    return true;
  }

  bool four_digits(char32_t& to) {
    if (end_ - at_ < 4) return false;
    std::uint16_t unit = 0;
    const auto [end, error] = std::from_chars(at_, at_ + 4, unit, 16);
    if (error != std::errc() || end != at_ + 4) return false;
    at_ = end;
    to = unit;
    return true;
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
    if (is_integer)
      return negative ? convert<json::number_integer_t>(from, to)
                      : convert<json::number_unsigned_t>(from, to);
    if (take('.') && !digits()) return false;
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      if (!digits()) return false;
    }
    return convert<json::number_float_t>(from, to);
  }

  // A number that ends at at_. It may be out of the type's range.
  template <typename Number>
  bool convert(const char* from, json& to) const {
    Number number = 0;
    const std::errc error = std::from_chars(from, at_, number).ec;
    to = number;
    return error == std::errc();
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
