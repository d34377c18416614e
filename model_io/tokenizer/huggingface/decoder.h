// From tokens back to text (a tokenizer.json's "decoder"), token by token.
//
// Generated text continues a prompt, and may be cut at any token. So what a decoder does to the
// beginning of a whole text, such as removing its first space, is not done: a token's bytes are
// those that it adds after other text.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model_io/tokenizer/huggingface/component.h"

namespace ptrt::huggingface {

class Decoder {
 public:
  // Appends the steps of a component.
  void add(const Component& component);
  // Bytes of a token, as the vocabulary writes it.
  std::string bytes_of(std::string token) const;

 private:
  using Step = std::function<std::string(std::string)>;

  void add_strip(const Component& component);

  std::vector<Step> steps_;
  bool joined_ = false;  // the steps so far end with one text: what follows does not see tokens any more
};

}  // namespace ptrt::huggingface
