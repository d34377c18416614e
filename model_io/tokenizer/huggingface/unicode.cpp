#include "model_io/tokenizer/huggingface/unicode.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/regex.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <cstdint>

#include "kernels/base/error.h"

namespace ptrt::huggingface {
namespace {

// ICU counts in 32 bits; the normal forms can make a text several times longer.
constexpr std::size_t kMaxTextBytes = std::size_t{1} << 28;
// Bounds against patterns that backtrack without end. ICU counts the states that a search saves, in steps of
// ten thousand: what is allowed is a hundred for each byte, many times what the usual patterns take, and then
// some. Of the states, so many bytes may be kept to go back to.
constexpr std::int32_t kMinMatchSteps = 2000;
constexpr std::size_t kTextBytesPerStep = 100;
constexpr std::int32_t kMaxMatchBytes = 256 << 20;

void check(UErrorCode status, const char* what) {
  if (U_FAILURE(status)) throw_failure("{}: {}", what, u_errorName(status));
}

icu::StringPiece piece_of(std::string_view text) {
  if (text.size() > kMaxTextBytes)
    throw_bad_input("a text of {} bytes is too long for the tokenizer; {} are the most", text.size(),
                    kMaxTextBytes);
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

void append_character(std::string& text, UChar32 c) {
  char bytes[U8_MAX_LENGTH];
  std::int32_t length = 0;
  U8_APPEND_UNSAFE(bytes, length, c);
  text.append(bytes, static_cast<std::size_t>(length));
}

// Puts long runs of combining marks into their canonical order, which changes no normal form. Marks of a few
// are ordered by the normalizer, which takes quadratic time for it.
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
    for (const char32_t mark : marks) append_character(result, static_cast<UChar32>(mark));
    result += text.substr(end, at - end);
  }
  return result;
}

// A construct that ICU reads in another way than Oniguruma does with Ruby's syntax, "" where there is none.
// (What ICU cannot read at all it says itself.)
std::string other_meaning(std::string_view pattern) {
  bool interval = false;  // the last token was {n,m}
  for (std::size_t at = 0; at < pattern.size(); ++at) {
    const char c = pattern[at];
    if (c == '+' && interval) return "a \"+\" behind an interval";  // there it repeats, here it is possessive
    interval = false;
    if (c == '\\' && at + 1 < pattern.size()) {
      const char escaped = pattern[++at];
      if (escaped == 'h' || escaped == 'H') return "\\h";  // there a hexadecimal digit, here a space
      if (at + 1 < pattern.size() && pattern[at + 1] == '{') at = pattern.find('}', at);  // \p{L}
      if (at == std::string_view::npos) break;
    } else if (c == '}') {
      interval = true;
    } else if (pattern.substr(at, 2) == "(?") {
      const std::size_t flags_end = pattern.find_first_not_of("imx-", at + 2);
      const std::string_view flags = pattern.substr(at + 2, flags_end - at - 2);
      if (flags.find('m') != flags.npos) return "the flag m";  // there it makes "." match line breaks
    }
  }
  return {};
}

}  // namespace

std::string normalize(NormalForm form, std::string_view text) {
  std::string result;
  const std::string ordered = order_marks(text);
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
      append_character(result, u_tolower(c));
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

struct Regex::Impl {
  std::unique_ptr<icu::RegexPattern> pattern;
};

Regex::Regex(const std::string& pattern) : error_(other_meaning(pattern)) {
  if (!error_.empty()) return;
  // Ruby's "^" and "$" stand at every line, and "\n" alone ends one.
  constexpr std::uint32_t kRubyFlags = UREGEX_MULTILINE | UREGEX_UNIX_LINES;
  UErrorCode status = U_ZERO_ERROR;
  UParseError place;
  auto impl = std::make_shared<Impl>();
  impl->pattern.reset(
      icu::RegexPattern::compile(icu::UnicodeString::fromUTF8(piece_of(pattern)), kRubyFlags, place, status));
  if (U_FAILURE(status)) error_ = fmt::format("{} at character {}", u_errorName(status), place.offset);
  impl_ = std::move(impl);
}

std::vector<Span> Regex::find_all(std::string_view text) const {
  const icu::UnicodeString wide = icu::UnicodeString::fromUTF8(piece_of(text));
  UErrorCode status = U_ZERO_ERROR;
  const std::unique_ptr<icu::RegexMatcher> matcher(impl_->pattern->matcher(wide, status));
  check(status, "regular expression");
  matcher->setTimeLimit(kMinMatchSteps + static_cast<std::int32_t>(text.size() / kTextBytesPerStep), status);
  matcher->setStackLimit(kMaxMatchBytes, status);

  // Matches come in order, so that one walk turns the places of UTF-16 into those of the bytes.
  std::size_t byte = 0;
  std::int32_t unit = 0;
  const auto byte_at = [&](std::int32_t wanted) {
    while (unit < wanted) unit += U16_LENGTH(static_cast<UChar32>(next_character(text, byte)));
    return byte;
  };
  std::vector<Span> matches;
  std::size_t last_end = std::string_view::npos;
  while (matcher->find(status)) {
    const std::size_t begin = byte_at(matcher->start(status));
    const std::size_t end = byte_at(matcher->end(status));
    if (begin == end && begin == last_end) continue;
    matches.push_back({begin, end});
    last_end = end;
  }
  if (U_FAILURE(status))
    throw_bad_input("a regular expression of the tokenizer gave up on the text: {}", u_errorName(status));
  return matches;
}

}  // namespace ptrt::huggingface
