// What a request does to a row of logits before a token is chosen from it. The log-probabilities of the row stay
// those of the logits as the model gave them.
#pragma once

#include <cfloat>
#include <cstddef>
#include <cstdint>
#include <span>

namespace ptrt {

// Of one token: its bias is added, then the repetition penalty divides a positive logit and multiplies any other,
// then what the other penalties come to is subtracted.
struct TokenEdit {
  std::int32_t token = 0;
  float bias = 0;
  float repetition_penalty = 1;  // > 0
  float subtracted = 0;

  // Of a finite logit; finite.
  constexpr float apply(float logit) const {
    double edited = static_cast<double>(logit) + static_cast<double>(bias);
    const double penalty = repetition_penalty;
    edited = edited > 0 ? edited / penalty : edited * penalty;
    edited -= static_cast<double>(subtracted);
    constexpr double kMost = FLT_MAX;
    return static_cast<float>(edited > kMost ? kMost : edited < -kMost ? -kMost : edited);
  }
};

inline constexpr std::int64_t kTokensPerMaskWord = 64;

constexpr std::int64_t mask_words(std::int64_t vocab) {
  return (vocab + kTokensPerMaskWord - 1) / kTokensPerMaskWord;
}

struct LogitEdits {
  std::span<const TokenEdit> tokens;  // ascending, each once
  // The tokens that may be chosen: bit `token % 64` of word `token / 64`, in mask_words(vocab) words; empty: all.
  std::span<const std::uint64_t> allowed;

  bool allows(std::int64_t token) const {
    if (allowed.empty()) return true;
    return (allowed[static_cast<std::size_t>(token / kTokensPerMaskWord)] >> (token % kTokensPerMaskWord) &
            1) != 0;
  }
};

}  // namespace ptrt
