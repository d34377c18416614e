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
  // empty.
  OutputText(const Tokenizer* tokenizer, std::span<const std::string> stop)
      : tokenizer_(tokenizer), stop_(stop) {}

  // Adds a token. Returns true when a stop string is now complete: the text then ends before its
  // first match.
  bool append(std::int32_t token);
  const std::string& bytes() const { return bytes_; }

 private:
  const Tokenizer* tokenizer_;
  std::span<const std::string> stop_;
  std::string bytes_;
};

}  // namespace ptrt
