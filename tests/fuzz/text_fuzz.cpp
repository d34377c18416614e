// UTF-8, Unicode and regular expressions, against simple references. The input is a text; its first line is also taken
// as a pattern.
#include <array>
#include <vector>

#include "driver/target.h"
#include "kernels/base/error.h"
#include "model_io/text/regex.h"
#include "model_io/text/unicode.h"

namespace ptrt::fuzz {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

// The length of the character that the bytes begin with, 0 where there is none; then `bad` is the length of the maximal
// subpart (Unicode 15, section 3.9, table 3-7).
std::size_t character_length(std::string_view bytes, std::size_t& bad) {
  const auto byte = [&](std::size_t i) {
    return i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0u;
  };
  const unsigned first = byte(0);
  bad = 1;
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xc2 && first <= 0xdf   ? 2
                             : first >= 0xe0 && first <= 0xef ? 3
                             : first >= 0xf0 && first <= 0xf4 ? 4
                                                              : 0;
  if (length == 0) return 0;
  const unsigned low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  const unsigned high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  for (std::size_t i = 1; i < length; ++i, ++bad)
    if (byte(i) < (i == 1 ? low : 0x80) || byte(i) > (i == 1 ? high : 0xbf)) return 0;
  return length;
}

std::string reference_sanitize(std::string_view bytes) {
  std::string text;
  while (!bytes.empty()) {
    std::size_t bad = 0;
    const std::size_t length = character_length(bytes, bad);
    text += length > 0 ? bytes.substr(0, length) : kReplacement;
    bytes.remove_prefix(length > 0 ? length : bad);
  }
  return text;
}

void check_unicode(std::string_view input) {
  const std::string valid = sanitize_utf8(input);
  expect(valid == reference_sanitize(input), "sanitize_utf8 differs from the reference");
  expect(sanitize_utf8(valid) == valid, "a sanitized text changes");
  expect(is_utf8(input) == (valid == input) && is_utf8(valid), "is_utf8 differs from the reference");
  std::vector<char32_t> forwards, backwards;
  for (std::size_t at = 0, before = 0; at < valid.size(); before = at) {
    forwards.push_back(next_character(valid, at));
    expect(at > before && at <= valid.size(), "next_character went from {} to {}", before, at);
  }
  for (std::size_t at = valid.size(); at > 0;)
    backwards.insert(backwards.begin(), previous_character(valid, at));
  expect(forwards == backwards, "characters forwards and backwards differ");
  for (const char32_t c : forwards)
    (void)(is_whitespace(c) || is_numeric(c) || is_punctuation(c) || is_word(c));
  for (const NormalForm form : {NormalForm::nfc, NormalForm::nfd, NormalForm::nfkc, NormalForm::nfkd}) {
    const std::string once = normalize(form, input);
    expect(once == normalize(form, valid), "a normal form depends on the kind of invalid bytes");
    expect(once == normalize(form, once), "a normal form changes when it is taken again");
    expect(sanitize_utf8(once) == once, "a normal form is no UTF-8");
  }
  const std::string lower = lowercase(input);
  expect(sanitize_utf8(lower) == lower && lowercase(lower) == lower,
         "lower case changes when it is taken again");
}

void check_regex(std::string_view input) {
  const std::size_t newline = std::min(input.find('\n'), input.size());
  const Regex regex{std::string(input.substr(0, newline))};
  if (!regex.error().empty()) return;
  for (const std::string_view text :
       {input.substr(newline), input, std::string_view("aaaaaaaaaaaaaaaaaaaaaaaab \n\t12")}) {
    try {
      std::size_t end = 0;
      for (const Span match : regex.find_all(text)) {
        expect(end <= match.begin && match.begin <= match.end && match.end <= text.size(),
               "a match from {} to {} after {}", match.begin, match.end, end);
        end = match.end;
      }
    } catch (const Error& error) {
      expect(error.code() == ExitCode::bad_input, "exit status {}: {}", static_cast<int>(error.code()),
             error.what());
    }
  }
}

}  // namespace

void run_input(std::string_view input) {
  check_unicode(input);
  check_regex(input);
}

std::string mutate_input(std::string input, Random& random) {
  constexpr auto kPieces = std::to_array<std::string_view>({
      "(?=",
      "(?!",
      "(?<=",
      "(?<!",
      "(?>",
      "(?:",
      ")",
      "*",
      "+",
      "?",
      "{2,}",
      "|",
      "[",
      "]",
      "[^",
      "&&",
      "\\p{L}",
      "\\p{N}",
      "\\s",
      "\\S",
      "\\w",
      "\\K",
      "\\b",
      "\\G",
      "\\1",
      "(?i)",
      ".",
      "^",
      "$",
      "\\R",
      "\\X",
      "\\h",
      "(?~a)",
      "\\g<1>",
      "(?<n>a)",
      "\\k<n>",
      "\xcc\x81",
      "\xcc\xa3",
      "\xe1\xb8\x81",
      "\xc4\xb0",
      "\xce\xa3",
      "\xef\xac\x81",
      "\xe1\x84\x80\xe1\x85\xa1",
      "\xed\x9e\xa3",
      "\xf0\x9d\x84\x9e",
      "\xef\xbf\xbe",
      "\xef\xb7\xba",
  });
  if (random.one_in(2)) return mutate_bytes(std::move(input), random);
  for (std::size_t left = 1 + random.below(3); left > 0; --left)
    input.insert(random.below(input.size() + 1), random.pick(kPieces));
  return input;
}

}  // namespace ptrt::fuzz
