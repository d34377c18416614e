// The first stage of encoding: the text is brought into one form (a tokenizer.json's "normalizer").
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model_io/tokenizer/huggingface/component.h"

namespace ptrt::huggingface {

class Normalizer {
 public:
  // Appends the steps of a component.
  void add(const Component& component);
  std::string apply(std::string text) const;

 private:
  using Step = std::function<std::string(const std::string&)>;
  std::vector<Step> steps_;
};

}  // namespace ptrt::huggingface
