// The tokenizer of kind "bytes" for 259 tokens: ids from 256 on are special.
#pragma once

#include "model_io/tokenizer/kinds/make_tokenizer.h"

namespace ptrt {

inline const Tokenizer& bytes() {
  static const ModelConfig config = [] {
    ModelConfig c;
    c.vocab_size = 259;
    return c;
  }();
  static const TokenizerChoice choice = make_tokenizer({"bytes", {}, "m.h5"}, config);
  return *choice.tokenizer;
}

}  // namespace ptrt
