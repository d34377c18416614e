#include "model_io/text/unicode.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/base/error.h"

namespace ptrt {
namespace {

// ICU and Oniguruma count in 32 bits; the normal forms can make a text several times longer.
constexpr std::size_t kMaxTextBytes = std::size_t{1} << 28;

void check(UErrorCode status, const char* what) {
  if (U_FAILURE(status)) throw_failure("{}: {}", what, u_errorName(status));
}

icu::StringPiece piece_of(std::string_view text) {
  check_text_length(text);
  return {text.data(), static_cast<std::int32_t>(text.size())};
}

const icu::Normalizer2& normalizer_of(NormalForm form) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer = nullptr;
  switch (form) {
    case NormalForm::nfc:
      normalizer = icu::Normalizer2::getNFCInstance(status);
      break;
    case NormalForm::nfd:
      normalizer = icu::Normalizer2::getNFDInstance(status);
      break;
    case NormalForm::nfkc:
      normalizer = icu::Normalizer2::getNFKCInstance(status);
      break;
    case NormalForm::nfkd:
      normalizer = icu::Normalizer2::getNFKDInstance(status);
      break;
  }
  check(status, "Unicode normalisation");
  return *normalizer;
}

// Puts long runs of combining marks into their canonical order, which changes no normal form. The
// normalizer orders short runs, in quadratic time.
std::string order_marks(std::string_view text) {
  constexpr std::size_t kLongRun = 64;
  std::string result;
  result.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    std::vector<char32_t> marks;
    const std::size_t begin = at;
    std::size_t end = at;
    char32_t c = next_character(text, at);
    for (; u_getCombiningClass(static_cast<UChar32>(c)) != 0; c = next_character(text, at)) {
      marks.push_back(c);
      end = at;
      if (at == text.size()) break;
    }
    if (marks.size() < kLongRun) {
      result += text.substr(begin, at - begin);
      continue;
    }
    std::ranges::stable_sort(marks, {},
                             [](char32_t mark) { return u_getCombiningClass(static_cast<UChar32>(mark)); });
    for (const char32_t mark : marks) append_character(result, mark);
    result += text.substr(end, at - end);
  }
  return result;
}

}  // namespace

std::string normalize(NormalForm form, std::string_view text) {
  std::string result;
  const std::string ordered = order_marks(sanitize_utf8(text));
  icu::StringByteSink<std::string> sink(&result, piece_of(ordered).size());
  UErrorCode status = U_ZERO_ERROR;
  normalizer_of(form).normalizeUTF8(0, piece_of(ordered), sink, nullptr, status);
  check(status, "Unicode normalisation");
  return result;
}

std::string lowercase(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const auto c = static_cast<UChar32>(next_character(text, at));
    constexpr UChar32 kDottedI = 0x130;  // the only character whose lower case is two: i and a dot above
    if (c == kDottedI)
      result += "i\u0307";
    else
      append_character(result, static_cast<char32_t>(u_tolower(c)));
  }
  return result;
}

bool is_whitespace(char32_t c) {
  return u_isUWhiteSpace(static_cast<UChar32>(c));
}

bool is_numeric(char32_t c) {
  return (U_GET_GC_MASK(static_cast<UChar32>(c)) & U_GC_N_MASK) != 0;
}

bool is_punctuation(char32_t c) {
  const std::uint32_t ascii =
      c < 0x80 ? std::uint32_t{U_GC_P_MASK | U_GC_S_MASK} : std::uint32_t{U_GC_P_MASK};
  return (U_GET_GC_MASK(static_cast<UChar32>(c)) & ascii) != 0;
}

bool is_word(char32_t c) {
  const auto code = static_cast<UChar32>(c);
  return u_hasBinaryProperty(code, UCHAR_ALPHABETIC) || u_hasBinaryProperty(code, UCHAR_JOIN_CONTROL) ||
         (U_GET_GC_MASK(code) & (U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK)) != 0;
}

char32_t next_character(std::string_view text, std::size_t& at) {
  UChar32 c = 0;
  U8_NEXT_OR_FFFD(text.data(), at, text.size(), c);
  return static_cast<char32_t>(c);
}

char32_t previous_character(std::string_view text, std::size_t& at) {
  const std::size_t tail_begin = at - std::min<std::size_t>(at, U8_MAX_LENGTH);
  const std::string_view tail = text.substr(tail_begin, at - tail_begin);
  auto begin = static_cast<std::int32_t>(tail.size());
  UChar32 c = 0;
  U8_PREV_OR_FFFD(tail.data(), 0, begin, c);
  at = tail_begin + static_cast<std::size_t>(begin);
  return static_cast<char32_t>(c);
}

void append_character(std::string& text, char32_t c) {
  char bytes[U8_MAX_LENGTH];
  std::int32_t length = 0;
  U8_APPEND_UNSAFE(bytes, length, c);
  text.append(bytes, static_cast<std::size_t>(length));
}

bool is_utf8(std::string_view bytes) {
  for (std::size_t at = 0; at < bytes.size();) {
    UChar32 c = 0;
    U8_NEXT(bytes.data(), at, bytes.size(), c);
    if (c < 0) return false;
  }
  return true;
}

std::string sanitize_utf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (std::size_t at = 0; at < bytes.size();) append_character(text, next_character(bytes, at));
  return text;
}

void check_text_length(std::string_view text) {
  if (text.size() > kMaxTextBytes)
    throw_bad_input("a text of {} bytes is too long for the tokenizer; {} are the most", text.size(),
                    kMaxTextBytes);
}

}  // namespace ptrt
