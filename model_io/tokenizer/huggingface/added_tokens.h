// Tokens that are found in the text itself, before it is cut into words (a tokenizer.json's
// "added_tokens"): special ones, such as <|im_start|>, and others.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model_io/text/span.h"
#include "model_io/tokenizer/huggingface/component.h"

namespace ptrt::huggingface {

struct AddedToken {
  std::string content;  // what is looked for
  std::int32_t id = 0;
  bool special = false;
  bool normalized = false;    // looked for in the normalised text, in its own normalised form
  bool single_word = false;   // only where no letter, digit or "_" is next to it
  bool strips_left = false;   // includes the white space before it
  bool strips_right = false;  // includes the white space after it
};

// Every id must be below `vocab_size`, the model's.
std::vector<AddedToken> read_added_tokens(const Component& tokenizer, std::int64_t vocab_size);

class AddedTokenFinder {
 public:
  // Tokens with an empty content are never found; of two with the same content the first counts.
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  struct Section {
    Span span;
    std::optional<std::int32_t> id;  // none: text between tokens
  };
  // The text in sections, none empty: from left to right, at each place the longest token.
  std::vector<Section> cut(std::string_view text) const;

 private:
  const AddedToken* longest_at(std::string_view text) const;

  std::vector<AddedToken> tokens_;          // sorted by content
  std::vector<std::size_t> first_of_byte_;  // tokens that begin with byte b: [b], [b + 1]
};

}  // namespace ptrt::huggingface
