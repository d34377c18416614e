// The second stage of encoding: a normalised text is cut into words, which the model encodes one by
// one (a tokenizer.json's "pre_tokenizer").
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model_io/tokenizer/huggingface/component.h"

namespace ptrt::huggingface {

struct Word {
  std::string text;
  bool starts_text = false;  // nothing of the whole text stands before it
};

class PreTokenizer {
 public:
  // Appends the steps of a component.
  void add(const Component& component);
  // None of the words is empty.
  std::vector<Word> cut(Word text) const;

 private:
  // Appends what becomes of a word.
  using Step = std::function<void(const Word&, std::vector<Word>&)>;

  void add_byte_level(const Component& component);
  void add_metaspace(const Component& component);

  std::vector<Step> steps_;
};

// A key whose string must be one character, as UTF-8.
std::string read_character(const Component& component, std::string_view key);

}  // namespace ptrt::huggingface
