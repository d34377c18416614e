#include "model_io/tokenizer/huggingface/pre_tokenizer.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "model_io/text/unicode.h"
#include "model_io/tokenizer/huggingface/byte_level.h"
#include "model_io/tokenizer/huggingface/pattern.h"

namespace ptrt::huggingface {
namespace {

// GPT-2's: English contractions, letters, numbers and the rest with one space before, and the other
// spaces.
constexpr const char* kByteLevelRegex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

void append_parts(const Word& word, const std::vector<Span>& parts, std::vector<Word>& words) {
  for (const Span part : parts)
    words.push_back(
        {word.text.substr(part.begin, part.end - part.begin), word.starts_text && part.begin == 0});
}

}  // namespace

std::string read_character(const Component& component, std::string_view key) {
  std::string character = component.text(key);
  std::size_t end = 0;
  if (!character.empty()) next_character(character, end);
  if (end == 0 || end != character.size()) component.fail_type(key, "one character", component.value(key));
  return character;
}

void PreTokenizer::add(const Component& component) {
  const std::string type = component.type();
  const auto add_step = [&](Pattern pattern, SplitBehavior behavior, bool invert = false) {
    steps_.push_back([pattern = std::move(pattern), behavior, invert](const Word& word, auto& words) {
      append_parts(word, split(word.text, pattern, behavior, invert), words);
    });
  };
  if (type == "Sequence") {
    component.allow({"pretokenizers"});
    for (const Component& step : component.children("pretokenizers")) add(step);
  } else if (type == "ByteLevel") {
    add_byte_level(component);
  } else if (type == "Metaspace") {
    add_metaspace(component);
  } else if (type == "Split") {
    component.allow({"pattern", "behavior", "invert"});
    add_step(read_pattern(component), read_split_behavior(component), component.flag("invert"));
  } else if (type == "Digits") {
    component.allow({"individual_digits"});
    const bool individual = component.flag("individual_digits");
    add_step(Pattern(is_numeric), individual ? SplitBehavior::isolated : SplitBehavior::contiguous);
  } else if (type == "Punctuation") {
    component.allow({"behavior"});
    const bool chosen = component.has("behavior");
    add_step(Pattern(is_punctuation), chosen ? read_split_behavior(component) : SplitBehavior::isolated);
  } else if (type == "WhitespaceSplit") {
    component.allow({});
    add_step(Pattern(is_whitespace), SplitBehavior::removed);
  } else if (type == "Whitespace") {
    component.allow({});
    // The library's \w+|[^\w\s]+ by another engine than its other patterns, with more word
    // characters.
    add_step(Pattern(is_whitespace), SplitBehavior::removed);
    add_step(Pattern(is_word), SplitBehavior::contiguous);
  } else {
    component.note_unsupported_type();
  }
}

// "trim_offsets" is about positions in the text, which are not used.
void PreTokenizer::add_byte_level(const Component& component) {
  component.allow({"add_prefix_space", "trim_offsets", "use_regex"});
  if (component.flag("add_prefix_space"))
    steps_.push_back([](const Word& word, auto& words) {
      words.push_back({(word.text.starts_with(' ') ? "" : " ") + word.text, word.starts_text});
    });
  if (component.flag("use_regex", true))
    steps_.push_back([pattern = Pattern(Regex(kByteLevelRegex))](const Word& word, auto& words) {
      append_parts(word, split(word.text, pattern, SplitBehavior::isolated), words);
    });
  steps_.push_back([](const Word& word, auto& words) {
    words.push_back({bytes_to_characters(word.text), word.starts_text});
  });
}

// Older files have "add_prefix_space" instead of "prepend_scheme".
void PreTokenizer::add_metaspace(const Component& component) {
  component.allow({"replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"});
  const std::string mark = read_character(component, "replacement");
  const bool prefix = component.flag("add_prefix_space", true);
  const std::string scheme = component.has("prepend_scheme") ? component.text("prepend_scheme")
                             : prefix                        ? "always"
                                                             : "never";
  if (scheme != "always" && scheme != "first" && scheme != "never")
    component.fail_type("prepend_scheme", "\"always\", \"first\" or \"never\"", scheme);
  if (!prefix && scheme != "never")
    component.fail("add_prefix_space", "does not agree with prepend_scheme \"" + scheme + "\"");
  steps_.push_back([mark, scheme, space = Pattern(" ")](const Word& word, auto& words) {
    std::string text = replace_all(word.text, space, mark);
    if (!text.starts_with(mark) && (scheme == "always" || (scheme == "first" && word.starts_text)))
      text.insert(0, mark);
    words.push_back({std::move(text), word.starts_text});
  });
  if (component.flag("split", true))
    steps_.push_back([pattern = Pattern(mark)](const Word& word, auto& words) {
      append_parts(word, split(word.text, pattern, SplitBehavior::merged_with_next), words);
    });
}

std::vector<Word> PreTokenizer::cut(Word text) const {
  std::vector<Word> words;
  if (!text.text.empty()) words.push_back(std::move(text));
  for (const Step& step : steps_) {
    std::vector<Word> parts;
    parts.reserve(words.size());
    for (const Word& word : words) step(word, parts);
    words = std::move(parts);
  }
  return words;
}

}  // namespace ptrt::huggingface
