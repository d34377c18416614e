// The tokens of a row that may be chosen, with their edited logits, closely packed: a choice from them needs no
// logit that stands for "none".
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/logit_edits.h"

namespace ptrt {

class EditedRow {
 public:
  // The row's logits are finite. The vectors grow to the vocabulary on first use.
  void assign(std::span<const float> row, const LogitEdits& edits);

  std::span<const float> logits() const { return std::span(logits_).first(count_); }
  // The token of logits()[index]; ascending.
  std::int32_t token(std::int32_t index) const {
    return is_masked_ ? tokens_[static_cast<std::size_t>(index)] : index;
  }

 private:
  void pack(std::span<const float> row, std::span<const std::uint64_t> allowed);
  std::size_t index_of(std::int32_t token) const;

  // Of the first `count_` elements; `tokens_` only where the row is masked.
  std::vector<float> logits_;
  std::vector<std::int32_t> tokens_;
  std::size_t count_ = 0;
  bool is_masked_ = false;
};

}  // namespace ptrt
