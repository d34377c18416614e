// From text to token ids and back. A token stands for a run of bytes, so a text may be cut between
// any two tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace ptrt {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Ids of a text, without bos and eos. Throws bad_input when the text cannot be encoded.
  virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;
  // Bytes that a token adds to the text before it; empty for special tokens (bos, eos, padding) and
  // ids beyond the vocabulary.
  virtual std::string token_bytes(std::int32_t id) const = 0;
  // The text that a rendered chat template has for a token, special ones included; empty where it has none.
  virtual std::string token_text(std::int32_t id) const { return token_bytes(id); }
  // As encode(), of a text that a chat template rendered: texts of special tokens become their ids.
  virtual std::vector<std::int32_t> encode_rendered(std::string_view text) const { return encode(text); }
};

// A model's tokenizer, or why it has none: it then takes and gives token ids only.
struct TokenizerChoice {
  std::unique_ptr<Tokenizer> tokenizer;  // null: no text
  std::string why_none;                  // then a clause for messages: "the model file has no tokenizer"
};

}  // namespace ptrt
