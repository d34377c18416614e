// How a row of logits is divided for the kernels of sampling.
#pragma once

namespace ptrt::cuda {

// A row's vocabulary is divided into at most kMaxVocabParts parts of at least kVocabPartTokens
// tokens.
inline constexpr int kVocabPartTokens = 2048, kMaxVocabParts = 32;

// The statistics of one part of one row.
struct VocabPart {
  unsigned long long best = 0;  // the key of its token with the largest logit, or with one not finite
  unsigned long long mass = 0;  // its tokens' probability mass, if the row is sampled
  float sum = 0;                // Σ e^(logit − the part's largest), if a log-probability is wanted
};

}  // namespace ptrt::cuda
