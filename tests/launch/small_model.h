// What request lines are read with: a model of 259 tokens and 64 positions, and its tokenizer of kind "bytes", whose ids from
// 256 on are special.
#pragma once

#include "model_io/config/model_config.h"
#include "model_io/tokenizer/kinds/make_tokenizer.h"

namespace ptrt {

inline ModelConfig small_config() {
  ModelConfig config;
  config.name = "small";
  config.vocab_size = 259;
  config.max_context = 64;
  config.bos_token_id = 256;
  config.eos_token_ids = {257};
  return config;
}

inline const TokenizerChoice& small_tokenizer() {
  static const TokenizerChoice choice = make_tokenizer({"bytes", {}, "m.h5"}, small_config());
  return choice;
}

inline const Tokenizer& bytes() {
  return *small_tokenizer().tokenizer;
}

}  // namespace ptrt
