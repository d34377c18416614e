#include "kernels/cpu/ops/edited_row.h"

#include <algorithm>
#include <bit>

#include "kernels/base/error.h"

namespace ptrt {

void EditedRow::assign(std::span<const float> row, const LogitEdits& edits) {
  if (logits_.size() < row.size()) logits_.resize(row.size());
  is_masked_ = !edits.allowed.empty();
  if (is_masked_)
    pack(row, edits.allowed);
  else
    count_ = static_cast<std::size_t>(std::ranges::copy(row, logits_.begin()).out - logits_.begin());
  for (const TokenEdit& edit : edits.tokens)
    if (edits.allows(edit.token)) {
      float& logit = logits_[index_of(edit.token)];
      logit = edit.apply(logit);
    }
}

// Whole words of allowed tokens, which most masks have most of, are copied.
void EditedRow::pack(std::span<const float> row, std::span<const std::uint64_t> allowed) {
  PTRT_CHECK(std::ssize(allowed) == mask_words(std::ssize(row)));
  constexpr auto kWord = static_cast<std::size_t>(kTokensPerMaskWord);
  if (tokens_.size() < row.size()) tokens_.resize(row.size());
  count_ = 0;
  for (std::size_t first = 0; first < row.size(); first += kWord) {
    std::uint64_t bits = allowed[first / kWord];
    if (bits == ~std::uint64_t{0} && first + kWord <= row.size()) {
      for (std::size_t i = 0; i < kWord; ++i) {
        tokens_[count_ + i] = static_cast<std::int32_t>(first + i);
        logits_[count_ + i] = row[first + i];
      }
      count_ += kWord;
      continue;
    }
    for (; bits != 0; bits &= bits - 1) {
      const std::size_t token = first + static_cast<std::size_t>(std::countr_zero(bits));
      if (token >= row.size()) break;
      tokens_[count_] = static_cast<std::int32_t>(token);
      logits_[count_++] = row[token];
    }
  }
}

std::size_t EditedRow::index_of(std::int32_t token) const {
  if (!is_masked_) return static_cast<std::size_t>(token);
  const auto end = tokens_.begin() + static_cast<std::ptrdiff_t>(count_);
  return static_cast<std::size_t>(std::lower_bound(tokens_.begin(), end, token) - tokens_.begin());
}

}  // namespace ptrt
