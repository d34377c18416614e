#include "model_io/tokenizer/huggingface/pattern.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/base/error.h"
#include "model_io/config/strict_json.h"
#include "model_io/text/unicode.h"

namespace ptrt::huggingface {
namespace {

// Replacements may make a text at most this long; chains of them could fill any memory.
constexpr std::size_t kMaxReplacedBytes = std::size_t{1} << 28;

constexpr std::array<std::pair<std::string_view, SplitBehavior>, 5> kSplitBehaviors{{
    {"Removed", SplitBehavior::removed},
    {"Isolated", SplitBehavior::isolated},
    {"MergedWithPrevious", SplitBehavior::merged_with_previous},
    {"MergedWithNext", SplitBehavior::merged_with_next},
    {"Contiguous", SplitBehavior::contiguous},
}};

// A match, or what lies between two; those of a text cover it.
struct Run {
  Span span;
  bool match;
};

std::vector<Span> find_literal(std::string_view text, std::string_view literal) {
  std::vector<Span> matches;
  if (literal.empty()) return matches;
  for (std::size_t at = text.find(literal); at != text.npos; at = text.find(literal, at + literal.size()))
    matches.push_back({at, at + literal.size()});
  return matches;
}

std::vector<Span> find_characters(std::string_view text, CharacterClass characters) {
  std::vector<Span> matches;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = at;
    if (characters(next_character(text, at))) matches.push_back({begin, at});
  }
  return matches;
}

std::vector<Run> runs_of(std::string_view text, const Pattern& pattern, bool invert) {
  std::vector<Run> runs;
  std::size_t end = 0;
  for (const Span match : pattern.find_all(text)) {
    if (end < match.begin) runs.push_back({{end, match.begin}, invert});
    runs.push_back({match, !invert});
    end = match.end;
  }
  if (end < text.size()) runs.push_back({{end, text.size()}, invert});
  return runs;
}

// Whether a run joins the one before it. The order is that of the text, or the reverse where
// matches join what follows them.
bool joins(SplitBehavior behavior, bool match, bool previous_match) {
  switch (behavior) {
    case SplitBehavior::merged_with_previous:
    case SplitBehavior::merged_with_next:
      return match && !previous_match;
    case SplitBehavior::contiguous:
      return match == previous_match;
    default:
      return false;
  }
}

}  // namespace

std::vector<Span> Pattern::find_all(std::string_view text) const {
  if (const auto* literal = std::get_if<std::string>(&what_)) return find_literal(text, *literal);
  if (const auto* characters = std::get_if<CharacterClass>(&what_)) return find_characters(text, *characters);
  return std::get<Regex>(what_).find_all(text);
}

Pattern read_pattern(const Component& owner) {
  const Component pattern = owner.child("pattern");
  const Pattern nothing{std::string()};
  if (pattern.has("String")) {
    std::string literal = pattern.text("String");
    if (literal.empty()) owner.note_unsupported(owner.path() + " with an empty pattern");
    return Pattern(std::move(literal));
  }
  if (!pattern.has("Regex")) owner.fail("pattern", "has neither \"String\" nor \"Regex\"");
  Regex regex(pattern.text("Regex"));
  if (regex.error().empty()) return Pattern(std::move(regex));
  owner.note_unsupported(fmt::format("the regular expression {} of {} ({})", shown(pattern.value("Regex")),
                                     owner.path(), regex.error()));
  return nothing;
}

std::string replace_all(std::string_view text, const Pattern& pattern, std::string_view replacement) {
  std::string result;
  result.reserve(text.size());
  std::size_t end = 0;
  for (const Span match : pattern.find_all(text)) {
    result += text.substr(end, match.begin - end);
    result += replacement;
    end = match.end;
    if (result.size() > kMaxReplacedBytes)
      throw_bad_input("the tokenizer's replacements make a text of {} bytes longer than {}", text.size(),
                      kMaxReplacedBytes);
  }
  return result += text.substr(end);
}

SplitBehavior read_split_behavior(const Component& owner) {
  const std::string name = owner.text("behavior");
  const auto* found = std::ranges::find(kSplitBehaviors, name, &decltype(kSplitBehaviors)::value_type::first);
  if (found != kSplitBehaviors.end()) return found->second;
  owner.note_unsupported(fmt::format("{} with the behavior {}", owner.path(), shown(name)));
  return SplitBehavior::isolated;
}

std::vector<Span> split(std::string_view text, const Pattern& pattern, SplitBehavior behavior, bool invert) {
  std::vector<Run> runs = runs_of(text, pattern, invert);
  const bool backwards = behavior == SplitBehavior::merged_with_next;
  if (backwards) std::ranges::reverse(runs);
  std::vector<Span> parts;
  bool previous_match = false;
  for (const Run& run : runs) {
    if (behavior == SplitBehavior::removed && run.match) continue;
    if (!parts.empty() && joins(behavior, run.match, previous_match))
      (backwards ? parts.back().begin : parts.back().end) = backwards ? run.span.begin : run.span.end;
    else
      parts.push_back(run.span);
    previous_match = run.match;
  }
  if (backwards) std::ranges::reverse(parts);
  std::erase_if(parts, [](Span part) { return part.begin == part.end; });
  return parts;
}

}  // namespace ptrt::huggingface
