#include "kernels/cpu/ops/edited_row.h"

#include <algorithm>
#include <bit>

#include "kernels/base/error.h"

namespace ptrt {

void EditedRow::assign(std::span<const float> row, const LogitEdits& edits) {
  tokens_.clear();
  if (edits.allowed.empty()) {
    logits_.assign(row.begin(), row.end());
    for (const TokenEdit& edit : edits.tokens) {
      float& logit = logits_[static_cast<std::size_t>(edit.token)];
      logit = edit.apply(logit);
    }
    return;
  }
  PTRT_CHECK(std::ssize(edits.allowed) == mask_words(std::ssize(row)));
  logits_.clear();
  for (std::size_t word = 0; word < edits.allowed.size(); ++word)
    for (std::uint64_t bits = edits.allowed[word]; bits != 0; bits &= bits - 1) {
      const std::size_t token = word * kTokensPerMaskWord + static_cast<std::size_t>(std::countr_zero(bits));
      if (token >= row.size()) break;
      tokens_.push_back(static_cast<std::int32_t>(token));
      logits_.push_back(row[token]);
    }
  for (const TokenEdit& edit : edits.tokens) {
    const auto at = std::ranges::lower_bound(tokens_, edit.token);
    if (at == tokens_.end() || *at != edit.token) continue;
    float& logit = logits_[static_cast<std::size_t>(at - tokens_.begin())];
    logit = edit.apply(logit);
  }
}

}  // namespace ptrt
