// What a component looks for in a text: a string, a regular expression or a class of characters.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "model_io/text/regex.h"
#include "model_io/tokenizer/huggingface/component.h"

namespace ptrt::huggingface {

using CharacterClass = bool (*)(char32_t);

class Pattern {
 public:
  explicit Pattern(std::string literal) : what_(std::move(literal)) {}
  explicit Pattern(Regex regex) : what_(std::move(regex)) {}
  explicit Pattern(CharacterClass characters) : what_(characters) {}

  // All matches from left to right, none overlapping. Each character of a class is a match.
  std::vector<Span> find_all(std::string_view text) const;

 private:
  std::variant<std::string, Regex, CharacterClass> what_;
};

// {"String": ...} or {"Regex": ...} of the key "pattern". One that cannot be run is noted and finds
// nothing.
Pattern read_pattern(const Component& owner);

// The text with every match replaced. Throws bad_input when it gets longer than any text may be.
std::string replace_all(std::string_view text, const Pattern& pattern, std::string_view replacement);

// What becomes of the matches when a text is split at them.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };
SplitBehavior read_split_behavior(const Component& owner);

// The parts of a text, none empty. `invert`: what lies between the matches counts as the matches.
std::vector<Span> split(std::string_view text, const Pattern& pattern, SplitBehavior behavior,
                        bool invert = false);

}  // namespace ptrt::huggingface
