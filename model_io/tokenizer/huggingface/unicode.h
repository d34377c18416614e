// What tokenizers ask of Unicode: normal forms, classes of characters, regular expressions. unicode.cpp is
// the only source that knows ICU. Positions in texts, which are UTF-8, are in bytes; what is no UTF-8 counts
// as U+FFFD.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace ptrt::huggingface {

// Bytes [begin, end) of a text.
struct Span {
  std::size_t begin = 0;
  std::size_t end = 0;
};

enum class NormalForm { nfc, nfd, nfkc, nfkd };

std::string normalize(NormalForm form, std::string_view text);
// Character by character, so that a capital sigma ends no word.
std::string lowercase(std::string_view text);

bool is_whitespace(char32_t c);
bool is_numeric(char32_t c);      // decimal digits, letters and other signs that stand for numbers
bool is_punctuation(char32_t c);  // that of Unicode and all of ASCII, "$" and "+" too
bool is_word(char32_t c);         // \w

// The character at `at`, which moves behind it; and the one that ends at `at`, which moves to its first byte.
char32_t next_character(std::string_view text, std::size_t& at);
char32_t previous_character(std::string_view text, std::size_t& at);

// A regular expression in the dialect of the tokenizers library (Oniguruma's Ruby syntax), as far as ICU
// reads it alike.
class Regex {
 public:
  // Not valid when the pattern cannot be run; `error` then says why.
  explicit Regex(const std::string& pattern);

  const std::string& error() const { return error_; }
  // All matches from left to right, none overlapping; empty ones included, but not right behind another
  // match. Throws bad_input when the search takes unreasonably many steps or much memory.
  std::vector<Span> find_all(std::string_view text) const;

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
  std::string error_;
};

}  // namespace ptrt::huggingface
