// The tokens of a row that may be chosen, with their edited logits, closely packed: a choice from them needs no
// logit that stands for "none".
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/logit_edits.h"

namespace ptrt {

class EditedRow {
 public:
  // The row's logits are finite. The vectors grow to the vocabulary on first use.
  void assign(std::span<const float> row, const LogitEdits& edits);

  std::span<const float> logits() const { return logits_; }
  // The token of logits()[index]; ascending.
  std::int32_t token(std::int32_t index) const {
    return tokens_.empty() ? index : tokens_[static_cast<std::size_t>(index)];
  }

 private:
  std::vector<float> logits_;
  std::vector<std::int32_t> tokens_;  // empty: all
};

}  // namespace ptrt
