// Text ⇄ token ids. A token stands for a run of bytes, so that a text may be cut between any two tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model_io/file/model_file.h"

namespace ptrt {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Ids of a text, no bos or eos added. Throws bad_input when the text cannot be encoded.
  virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;
  // Bytes that a token adds to text before it; empty for special tokens (bos, eos, padding, ids beyond the
  // vocabulary).
  virtual std::string token_bytes(std::int32_t id) const = 0;
};

// A model's tokenizer, or the reason why it takes and gives token ids only.
struct TokenizerChoice {
  std::unique_ptr<Tokenizer> tokenizer;  // null: no text
  std::string why_none;                  // then a clause for messages: "the model file has no tokenizer"
};

// No tokenizer when the file has none, or a huggingface one with a part that this program does not have.
// Throws bad_input on an unknown kind, a broken tokenizer model, or one with tokens beyond config.vocab_size.
TokenizerChoice make_tokenizer(const TokenizerBlob& blob, const ModelConfig& config);

// Replaces every maximal invalid UTF-8 subpart by U+FFFD (Unicode 15, section 3.9; what Python's
// errors="replace" does).
std::string sanitize_utf8(std::string_view bytes);

}  // namespace ptrt
