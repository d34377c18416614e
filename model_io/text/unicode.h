// Characters of UTF-8 texts: normal forms, classes, checks, repair. unicode.cpp is the only source that
// knows ICU. Positions in texts are in bytes. Bytes that are not valid UTF-8 count as U+FFFD, one
// for every maximal invalid subpart (Unicode 15, section 3.9).
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace ptrt {

enum class NormalForm { nfc, nfd, nfkc, nfkd };

// Throws bad_input where the text is too long.
std::string normalize(NormalForm form, std::string_view text);
// Character by character: a capital sigma at the end of a word is treated as any other.
std::string lowercase(std::string_view text);

bool is_whitespace(char32_t c);
bool is_numeric(char32_t c);      // general category N: digits, letters and other signs for numbers
bool is_punctuation(char32_t c);  // general category P; of ASCII also the symbols, such as "$" and "+"
bool is_word(char32_t c);         // Unicode's \w: alphabetic, marks, decimal digits, connectors, joiners

// The character at `at`, which moves after it; and the one that ends at `at`, which moves to its
// first byte.
char32_t next_character(std::string_view text, std::size_t& at);
char32_t previous_character(std::string_view text, std::size_t& at);

void append_character(std::string& text, char32_t c);  // no surrogate

bool is_utf8(std::string_view bytes);  // valid
// The text with U+FFFD for what is not valid UTF-8, as Python's errors="replace" gives it.
std::string sanitize_utf8(std::string_view bytes);

// Throws bad_input where a text is longer than normalize() and regular expressions take.
void check_text_length(std::string_view text);

}  // namespace ptrt
