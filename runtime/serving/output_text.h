// The text of a growing sequence: the bytes of its tokens, up to the first stop string.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model_io/tokenizer/tokenizer.h"

namespace ptrt {

class OutputText {
 public:
  // Both must outlive this object. If `tokenizer` is null, there is no text, and `stop` must be
  // empty. `includes_stop`: the text ends behind the match, else before it.
  OutputText(const Tokenizer* tokenizer, std::span<const std::string> stop, bool includes_stop = false)
      : tokenizer_(tokenizer), stop_(stop), includes_stop_(includes_stop) {}

  // Adds a token. Returns true when a stop string is now complete: the text then ends at its first
  // match that reaches into this token. Not where `may_stop` is false.
  bool append(std::int32_t token, bool may_stop = true);
  const std::string& bytes() const { return bytes_; }

 private:
  const Tokenizer* tokenizer_;
  std::span<const std::string> stop_;
  bool includes_stop_;
  std::string bytes_;
};

}  // namespace ptrt
